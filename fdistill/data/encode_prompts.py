"""Encoding prompts once with a pipeline's text encoders: files of embeddings that `Prompts` trains on."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from fdistill.core.atomic_files import atomic_write
from fdistill.core.fingerprints import fingerprint
from fdistill.data.prompt_encoders import PromptEncoder
from fdistill.data.prompt_files import (
    DESCRIPTION,
    ENDS,
    FILE_NAME,
    NULL,
    TEXT,
    TEXT_ENDS,
    PromptDescription,
    PromptFiles,
)
from fdistill.data.resumed_folder import check_begun, held

FILE_BYTES = 256 * 2**20  # of embeddings in a file, at most; an interrupted command loses at most one
NUMBERS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_NAME = "prompts-{:05}.safetensors"
_OURS = re.compile(FILE_NAME.pattern + rf"|{DESCRIPTION}|{NULL}|\.(prompts|null).*\.tmp")


class PromptEncoding(NamedTuple):
    """What is asked for.

    Attributes:
        prompts: at least one, none empty.
        source: where they come from, for people.
        encoder: of the pipeline.
        numbers: a name of `NUMBERS`, in which embeddings are stored.
        batch_size: prompts at once; embeddings depend on it by rounding.
    """

    prompts: Sequence[str]
    source: str
    encoder: PromptEncoder
    numbers: str = "float16"
    batch_size: int = 16


class Encoded(NamedTuple):
    """What became of it.

    Attributes:
        prompts: in the folder.
        now: of them, encoded by this call.
        bytes: of all files.
        cut: prompts that are longer than a tokenizer takes, by its name.
    """

    prompts: int
    now: int
    bytes: int
    cut: dict[str, int]


def encode_prompts(asked: PromptEncoding, target: Path, overwrite: bool = False) -> Encoded:
    """Write the embeddings of prompts and of "no prompt", and last the description.

    What was interrupted goes on with the next file; files are whole or not there.

    Args:
        asked: what to encode, and how.
        target: folder to write into: new, empty, or of encoded prompts.
        overwrite: replace whatever encoded prompts are there.

    Raises:
        ValueError: where the target holds other things, or embeddings are not finite.
        OSError: where it cannot be written.
    """
    if asked.batch_size < 1 or asked.numbers not in NUMBERS or not asked.prompts:
        raise ValueError(
            f"encoding takes prompts, batch_size >= 1 and numbers of {', '.join(NUMBERS)}: got {len(asked.prompts)} "
            f"prompts, {asked.batch_size} and {asked.numbers!r}"
        )
    identity = asked.encoder.identity()
    told = [identity, asked.encoder.settings, asked.encoder.dtype, asked.numbers, asked.batch_size, FILE_BYTES]
    request = fingerprint([*told, list(asked.prompts)])
    if not overwrite and (target / DESCRIPTION).exists():
        there = held(target, lambda folder: PromptFiles(folder).description, request, "prompts")
        return Encoded(len(asked.prompts), 0, sum(file["bytes"] for file in there.files), there.made["cut"])
    _make_room(target, request, overwrite)
    cut = _cut(asked)
    null = _checked(asked.encoder.null(), NUMBERS[asked.numbers])
    shapes, mask = _shapes(null, asked.encoder.family.mask), asked.encoder.family.mask
    longest = max(asked.encoder.limits().values())
    numbers = sum(math.prod(longest if size is None else size for size in shape) for shape in shapes.values())
    per_file = max(1, FILE_BYTES // (numbers * NUMBERS[asked.numbers].itemsize))
    files: list[dict[str, Any]] = []
    now = 0
    with tqdm(total=len(asked.prompts), desc="encoding", unit="prompt") as bar:
        for number, first in enumerate(range(0, len(asked.prompts), per_file)):
            path, part = target / _NAME.format(number), asked.prompts[first : first + per_file]
            if path.is_file():
                bar.update(len(part))
            else:
                atomic_write(path, save(_file(asked, part, shapes, bar), {"request": request}))
                now += len(part)
            files.append({"name": path.name, "prompts": len(part), "bytes": path.stat().st_size})
    stored = {name: value for name, value in null.items() if name in shapes}
    if mask is not None:
        stored = {
            name: _rows(value, null[mask])[0][None] if None in shapes[name] else value for name, value in stored.items()
        }
    atomic_write(target / NULL, save(_whole(stored), {"request": request}))
    made = {"source": asked.source, "numbers": asked.numbers, "settings": asked.encoder.settings, "cut": cut}
    text = PromptDescription(asked.encoder.name, identity, shapes, mask, files, made, request)
    atomic_write(target / DESCRIPTION, json.dumps(text._asdict(), indent=1))
    return Encoded(len(asked.prompts), now, sum(file["bytes"] for file in files), cut)


def _make_room(target: Path, request: str, overwrite: bool) -> None:
    """Leave nothing but the files of an interrupted command for the same request.

    Raises:
        ValueError: where something else would be lost.
    """
    if not target.exists():
        return
    present = sorted(path.name for path in target.iterdir())
    foreign = [name for name in present if not _OURS.fullmatch(name)]
    if foreign:
        raise ValueError(f"{target} holds {foreign[0]}: encoded prompts go to a new folder; name another one")
    going = [DESCRIPTION, *present] if overwrite else [name for name in present if name[0] == "."]
    for name in going:  # the description first: it never tells of files that are gone
        (target / name).unlink(missing_ok=True)
    check_begun(target, request, "prompts")


def _cut(asked: PromptEncoding) -> dict[str, int]:
    """How many prompts are longer than each tokenizer takes; none is encoded yet."""
    found = dict.fromkeys(asked.encoder.limits(), 0)
    for first in range(0, len(asked.prompts), 1000):
        for name, count in asked.encoder.cut(asked.prompts[first : first + 1000]).items():
            found[name] += count
    return found


def _shapes(null: Mapping[str, Tensor], mask: str | None) -> dict[str, list[int | None]]:
    """Shape of what is stored of one prompt, None for as many rows as it has tokens."""
    length = None if mask is None else null[mask].shape[1]
    return {
        name: [None if value.ndim == 3 and value.shape[1] == length else value.shape[1], *value.shape[2:]]
        for name, value in null.items()
        if name != mask
    }


def _file(
    asked: PromptEncoding, prompts: Sequence[str], shapes: Mapping[str, Sequence[int | None]], bar: tqdm
) -> dict[str, Tensor]:
    """The tensors of one file."""
    parts: dict[str, list[Tensor]] = {name: [] for name in shapes}
    lengths: list[Tensor] = []
    for first in range(0, len(prompts), asked.batch_size):
        batch = prompts[first : first + asked.batch_size]
        found = _checked(asked.encoder.encode(batch), NUMBERS[asked.numbers])
        mask = found.get(asked.encoder.family.mask or "")
        lengths.append(torch.zeros(len(batch), dtype=torch.int64) if mask is None else mask.sum(1))
        for name, shape in shapes.items():
            parts[name] += _rows(found[name], mask) if mask is not None and None in shape else [found[name]]
        bar.update(len(batch))
    letters = [prompt.encode() for prompt in prompts]
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    tensors[ENDS] = torch.cat(lengths).cumsum(0)
    tensors[TEXT] = torch.frombuffer(bytearray(b"".join(letters)), dtype=torch.uint8)
    tensors[TEXT_ENDS] = torch.tensor([len(each) for each in letters]).cumsum(0)
    return _whole(tensors)


def _rows(value: Tensor, mask: Tensor) -> list[Tensor]:
    """The rows [L_i, ...] of each prompt's own tokens."""
    return [one[kept] for one, kept in zip(value, mask.bool(), strict=True)]


def _checked(found: Mapping[str, Tensor], numbers: torch.dtype) -> dict[str, Tensor]:
    """Embeddings in the numbers that are stored.

    Raises:
        ValueError: where they are not finite, or do not fit into those.
    """
    if not all(value.isfinite().all() for value in found.values()):
        raise ValueError("the text encoders gave a NaN or an infinity: check their weights, or encode without --bf16")
    cast = {name: value.to(numbers) if value.is_floating_point() else value for name, value in found.items()}
    if not all(value.isfinite().all() for value in cast.values()):
        raise ValueError("embeddings of these encoders do not fit into float16: give --numbers bfloat16 or float32")
    return cast


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors.items()}
