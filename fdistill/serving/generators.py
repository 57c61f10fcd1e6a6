"""Generators that are served: loaded from folders that hold no code, warmed, and making batches of one shape."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fdistill.core.weight_files import CheckpointError
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import PIPELINE, StockPipeline, pipeline_folder, prompt_condition
from fdistill.models.condition import Condition, declared
from fdistill.models.vae import Decoder
from fdistill.sampling.draw import chosen_labels
from fdistill.sampling.generator import GenerativeModel
from fdistill.serving.settings import How

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_OURS = ("pipeline.py", "model/generator.py")  # what fdistill export writes for stock diffusers; it is not run here
_CODE = (".py", ".pyc", ".so")
_REMOTE_CODE = ("auto_map", "trust_remote_code")
_SLICE = 16  # images that a decoder makes at once
_CLASSES = "classes.txt"
_LONGEST = 4000  # characters of a prompt
_PLACE = re.compile(r"\s*(\w+://|data:|\.{0,2}/|~|[A-Za-z]:\\)")
_KEPT = 256  # conditions of prompts


class Generator:
    """A model that makes pictures in batches of one shape; a `Maker` of the batcher."""

    def __init__(self, name: str, path: Path, how: How) -> None:
        """Load it and make one batch.

        Args:
            name: what requests call it.
            path: of a folder of fdistill export, or of a run's checkpoint.
            how: it computes.

        Raises:
            CheckpointError: where it cannot be served, in one line.
        """
        check_safe(path)
        self.name, self.size = name, how.size
        self.model = model = _prepared(load_model(path), path, how)
        self.card = _card(path) or f"{name}: no model card beside {path.name}"
        self.classes = _class_names(path, model)
        self.reads_text = PIPELINE in model.facts
        takes = model.denoiser.takes
        if takes and not model.num_classes and not self.reads_text:
            raise CheckpointError(f"{path} takes {declared(takes)}, which no prompt tells: serve its exported folder")
        self._of = functools.lru_cache(_KEPT)(self._condition)
        # the last slice is as large as the first: another shape has other last bits
        self._slice = math.gcd(how.size, _SLICE)
        example = "warm" if self.reads_text else "0" if model.num_classes else ""
        shape = self._warmed(self.condition(example)).shape[1:]
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise CheckpointError(f"{path} makes samples {list(shape)}, no pictures: fdistill sample writes them")
        self.shape = tuple(shape)

    @property
    def side(self) -> str:
        """Width x height of a picture, as OpenAI's API writes it."""
        return f"{self.shape[2]}x{self.shape[1]}"

    @property
    def asks(self) -> str:
        """What a prompt is, in words."""
        if self.reads_text:
            return "a text"
        takes = self.model.denoiser.takes
        if len(takes) > 1:
            sets = ", ".join(f"{name}=0..{entry.classes - 1}" for name, entry in takes.items())
            return f"one class of each set ({sets}) or the number of a combination, 0 to {self.model.num_classes - 1}"
        if not self.model.num_classes:
            return "empty, for this generator takes no condition"
        names = f" or name ({', '.join(self.classes[:4])} ...)" if self.classes else ""
        return f"the number of a class, 0 to {self.model.num_classes - 1}{names}"

    def condition(self, prompt: str) -> Condition:
        """What the network takes for one picture, one row; of a text in one thread at a time.

        Raises:
            ValueError: where the prompt is none of this generator, in one line.
        """
        if len(prompt) > _LONGEST:
            raise ValueError(f"a prompt has at most {_LONGEST:,} characters: got {len(prompt):,}")
        if _PLACE.match(prompt):
            raise ValueError("a prompt is a class or a text: got a path or an address, and none is ever opened")
        return self._of(prompt)

    def _condition(self, prompt: str) -> Condition:
        if self.reads_text:
            if not prompt.strip():
                raise ValueError("a prompt of this generator is a text: got none")
            return prompt_condition(self.model, [prompt], 1, self._pipeline)
        number = self._number(" ".join(prompt.split()))
        return self.model.condition(None if number is None else torch.tensor([number]), 1)

    def _number(self, prompt: str) -> int | None:
        takes, lower = self.model.denoiser.takes, [name.lower() for name in self.classes]
        if not takes and not prompt:
            return None
        if prompt.isascii() and prompt.isdigit() and len(prompt) < 10 and int(prompt) < self.model.num_classes:
            return int(prompt)
        if prompt.lower() in lower:
            return lower.index(prompt.lower())
        pairs = re.fullmatch(r"\w+ ?= ?\d{1,9}(, ?\w+ ?= ?\d{1,9})*", prompt)
        if pairs and len(takes) > 1:
            given = dict(re.findall(r"(\w+) ?= ?(\d+)", prompt))
            numbers = chosen_labels(self.model, 1, {name: int(value) for name, value in given.items()})
            return None if numbers is None else int(numbers[0])
        raise ValueError(f"a prompt of {self.name} is {self.asks}: got {prompt[:60]!r}")

    @functools.cached_property
    def _pipeline(self) -> StockPipeline:
        return StockPipeline(pipeline_folder(self.model))

    def noise(self, generator: torch.Generator) -> Tensor:
        """The latent of one picture, [1, *latent_shape]."""
        return self.model.latents(1, generator)

    def make(self, noise: Tensor, condition: Condition, wanted: int) -> Tensor:
        """The first `wanted` pictures, float32 [wanted, C, H, W] in [-1, 1], of noise of the one shape of batches.

        The network makes the whole batch, a decoder whole slices of it.
        """
        samples = self.model.sample(noise, condition, batch_size=self.size)
        if self.model.decoder is None:
            return samples[:wanted]
        slices = -(-wanted // self._slice)
        return self.model.decoder(samples[: slices * self._slice], self._slice)[:wanted]

    def _warmed(self, condition: Condition) -> Tensor:
        noise = torch.zeros(self.size, *self.model.latent_shape)
        return self.make(noise, Condition.cat([condition] * self.size), self.size)


def _prepared(model: GenerativeModel, path: Path, how: How) -> GenerativeModel:
    if how.decoder is not None:
        if model.decoder is None:
            raise CheckpointError(f"{path} makes pixels, not latents: leave --decoder out")
        model = dataclasses.replace(model, decoder=Decoder(how.decoder))
    model.sampling_on(how.device)
    if how.bf16:
        model.autocast = torch.bfloat16
    if how.compiled:
        model.denoiser.network.compile(dynamic=False)
    return model


def check_safe(path: Path) -> None:
    """Raises CheckpointError for a folder with pickles, or with code that fdistill export does not write.

    Nothing of a folder is ever run or unpickled; one that has such files is none that should be handed on.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        inner = file.relative_to(path).as_posix()
        kind = "a pickle" if file.suffix in _PICKLES else "code" if file.suffix in _CODE else None
        if kind == "code" and inner in _OURS:
            kind = None
        if file.suffix == ".json" and file.is_file() and file.stat().st_size < 2**20:
            kind = "a switch for code" if any(word in _keys(file) for word in _REMOTE_CODE) else None
        if file.is_symlink() and file.is_dir():
            kind = "a link to a folder"  # what is behind it is not looked at
        if kind is not None:
            raise CheckpointError(
                f"{path} holds {kind}, {inner}: expected configurations and safetensors alone; export it by fdistill"
            )


def _keys(file: Path) -> Sequence[str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return ()
    return tuple(found) if isinstance(found, dict) else ()


def _card(path: Path) -> str:
    """The model card of a folder without the metadata before it; empty where there is none."""
    file = path / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()


def _class_names(path: Path, model: GenerativeModel) -> list[str]:
    """The lines of classes.txt in a folder: one name for each class, in their order."""
    file = path / _CLASSES
    if not file.is_file():
        return []
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is text in UTF-8: got bytes that are none, at {error.start}") from error
    strange = [name for number, name in enumerate(names) if name.isdecimal() and int(name) != number]
    if strange:
        raise CheckpointError(f"{file} may call a class by its own number, not by another's: got {strange[0]}")
    if len(names) != model.num_classes or len({name.lower() for name in names} - {""}) != len(names):
        raise CheckpointError(f"{file} has one name for each of {model.num_classes} classes: got {len(names)} lines")
    return names
