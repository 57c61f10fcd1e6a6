"""Encoded prompts in safetensors files: what `fdistill encode-prompts` writes, and how a batch is read from it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fdistill.core.weight_files import CheckpointError, brief, checked_number, file_size, read_json, reason
from fdistill.models.condition import Condition, Entry, Takes

DESCRIPTION, NULL = "prompts.json", "null.safetensors"
FILE_NAME = re.compile(r"prompts-\d{5,}\.safetensors")
ENDS, TEXT, TEXT_ENDS = "prompt_token_ends", "prompt_text", "prompt_text_ends"
FORMAT = 1
_OWN = {ENDS, TEXT, TEXT_ENDS}
_REMEDY = "write it again with fdistill encode-prompts"
_MOST = 2**40
_OPEN_AT_ONCE = 64  # files; a system allows 1,024


class PromptDescription(NamedTuple):
    """What `prompts.json` says.

    Attributes:
        pipeline: class of the pipeline whose encoders made them.
        encoder: their identity, `prompt_encoders.encoder_identity`.
        shapes: of one prompt's tensor, by the network's argument; None where it has as many rows as the prompt tokens.
        mask: argument that tells the tokens from the padding of a batch; None where every prompt has the same length.
        files: name of each file, prompts in it and its bytes.
        made: how they were made, for people.
        request: fingerprint of all that decides what is in the files.
        format: of this description.
    """

    pipeline: str
    encoder: str
    shapes: dict[str, list[int | None]]
    mask: str | None
    files: list[dict[str, Any]]
    made: dict[str, Any]
    request: str
    format: int = FORMAT


def read_prompt_description(folder: Path) -> PromptDescription:
    """What the encoded prompts of a folder are.

    Raises:
        CheckpointError: with one line, where the folder holds none, or its description is not understood.
    """
    path = folder / DESCRIPTION
    found = read_json(path, "the description of prompts that fdistill encode-prompts writes last")
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of format {found.get('format')!r}: expected {FORMAT}; {_REMEDY}")
    try:
        described = PromptDescription(**found)
        if not described.files or not described.shapes or _OWN & described.shapes.keys():
            raise ValueError("there are files, and tensors in them")
        for shape in described.shapes.values():
            for place, size in enumerate(shape):
                if size is not None or place:
                    checked_number(size, "a size of a tensor", 1, 2**20, whole=True)
        if (described.mask is None) is any(None in shape for shape in described.shapes.values()):
            raise ValueError("tensors with a row for each token go with a mask")
        for file in described.files:
            checked_number(file["prompts"], "prompts", 1, _MOST, whole=True)
            checked_number(file["bytes"], "bytes", 1, _MOST, whole=True)
            if not FILE_NAME.fullmatch(file["name"]):
                raise ValueError(f"a file beside it is called prompts-00000.safetensors: got {brief(file['name'])}")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} describes no prompts ({reason(error)}): {_REMEDY}") from error
    return described


class PromptFiles:
    """Prompts of a folder, read by number from memory-mapped files; memory holds 24 bytes a prompt.

    Args:
        folder: what fdistill encode-prompts wrote.

    Raises:
        CheckpointError: with one line, where a file is missing, cut off, or not what the description says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.description = folder, read_prompt_description(folder)
        self._opened: dict[int, dict[str, Any]] = {}
        self._first = torch.tensor([0, *(file["prompts"] for file in self.description.files)]).cumsum(0)
        ends = [self._checked(number) for number in range(len(self.description.files))]
        self._token_ends, self._text_ends = (torch.cat(parts) for parts in zip(*ends, strict=True))
        self.null()

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def takes(self) -> Takes:
        """What a network takes of them: floats under their names, and the mask int64."""
        shapes = self.description.shapes
        found = {name: Entry(tuple(shape), torch.float32) for name, shape in shapes.items()}
        return found | ({} if self.description.mask is None else {self.description.mask: Entry((None,))})

    def condition(self, indices: Sequence[int]) -> Condition:
        """The condition of these prompts, float32, in this order; padded with zeros to the longest one.

        Raises:
            CheckpointError: with one line, where a file is gone, or holds numbers that are not finite.
        """
        rows: dict[str, list[Tensor]] = {name: [] for name in self.description.shapes}
        for index in indices:
            number, place = self._place(index)
            tokens = self._range(self._token_ends, number, index)
            for name, parts in rows.items():
                ragged = self.description.shapes[name][:1] == [None]
                parts.append(self._slices(number)[name][tokens if ragged else place].float())
        condition = self._batched(rows)
        if not all(value.sum().isfinite() for value in condition.values()):  # much less time than asking each number
            raise CheckpointError(f"{self.folder} holds embeddings that are not finite: {_REMEDY}")
        return condition

    def null(self) -> Condition:
        """The condition that means "no prompt", of one sample.

        Raises:
            CheckpointError: with one line, where its file is missing or holds something else.
        """
        path = self.folder / NULL
        try:
            with safe_open(path, framework="pt") as opened:
                request = (opened.metadata() or {}).get("request")
                rows = {name: [opened.get_tensor(name)[0].float()] for name in self.description.shapes}
        except (SafetensorError, OSError, IndexError) as error:
            raise _broken(path) from error
        condition = self._batched(rows)
        if request != self.description.request or not all(value.isfinite().all() for value in condition.values()):
            raise CheckpointError(f"{path} is of other prompts than {DESCRIPTION} beside it, or not finite: {_REMEDY}")
        condition.check(self.takes, 1)
        return condition

    def texts(self, indices: Sequence[int]) -> list[str]:
        """The prompts themselves."""
        found = []
        for index in indices:
            number, _ = self._place(index)
            letters = self._slices(number)[TEXT][self._range(self._text_ends, number, index)]
            found.append(bytes(letters.tolist()).decode("utf-8", "replace"))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def _batched(self, rows: dict[str, list[Tensor]]) -> Condition:
        tensors = {}
        for name, parts in rows.items():
            ragged = self.description.shapes[name][:1] == [None]
            tensors[name] = pad_sequence(parts, batch_first=True) if ragged else torch.stack(parts)
            if ragged and self.description.mask is not None:
                lengths = torch.tensor([len(part) for part in parts])
                tensors[self.description.mask] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return Condition(tensors)

    def _place(self, index: int) -> tuple[int, int]:
        """The file that a prompt is in, and its number there."""
        number = int(torch.searchsorted(self._first, index, right=True)) - 1
        return number, index - int(self._first[number])

    def _range(self, ends: Tensor, number: int, index: int) -> slice:
        """Where its tokens or letters lie in its file."""
        return slice(0 if index == int(self._first[number]) else int(ends[index - 1]), int(ends[index]))

    def _slices(self, number: int) -> dict[str, Any]:
        if number not in self._opened:
            if len(self._opened) >= _OPEN_AT_ONCE:
                self._opened.clear()
            try:
                opened = safe_open(self._path(number), framework="pt")
                names = (*self.description.shapes, TEXT)
                self._opened[number] = {name: opened.get_slice(name) for name in names}
            except (SafetensorError, OSError) as error:
                raise _broken(self._path(number)) from error
        return self._opened[number]

    def _path(self, number: int) -> Path:
        return self.folder / self.description.files[number]["name"]

    def _checked(self, number: int) -> tuple[Tensor, Tensor]:
        """Where tokens and letters of each prompt end, of one file that is what the description says."""
        file, path = self.description.files[number], self._path(number)
        try:
            size = file_size(path)
            if size != file["bytes"]:
                raise CheckpointError(f"{path} is cut off or changed: expected {file['bytes']:,} bytes, got {size:,}")
            with safe_open(path, framework="pt") as opened:
                request = (opened.metadata() or {}).get("request")
                shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
                ends = opened.get_tensor(ENDS), opened.get_tensor(TEXT_ENDS)
        except (SafetensorError, OSError) as error:
            raise _broken(path) from error
        count, (tokens, letters) = file["prompts"], (int(end[-1]) if len(end) else -1 for end in ends)
        expected = {ENDS: [count], TEXT_ENDS: [count], TEXT: [letters]}
        for name, (first, *rest) in self.description.shapes.items():
            expected[name] = [tokens, *rest] if first is None else [count, first, *rest]
        rises = all(end.dtype == torch.int64 and bool((end.diff() >= 0).all()) and int(end[0]) >= 0 for end in ends)
        if shapes != expected or request != self.description.request or not rises:
            raise CheckpointError(f"{path} holds other prompts than {DESCRIPTION} beside it says: {_REMEDY}")
        return ends


def _broken(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is missing, damaged or no file of prompts: {_REMEDY}")
