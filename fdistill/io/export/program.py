"""A student without Python: latents and condition to samples, as a torch.export program or an ONNX graph."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from fdistill.models.condition import Condition
from fdistill.sampling import renoise
from fdistill.sampling.generator import GenerativeModel

Program = Literal["torch_export", "onnx"]
"""The kinds of artefact, and the name of the command's option for each."""

FILES: dict[Program, str] = {"torch_export": "generator.pt2", "onnx": "generator.onnx"}
_ONNX_PACKAGES = ("onnx", "onnxscript")
_EXAMPLES = 2  # samples; 0 and 1 would be taken for constants
_LARGEST_ONNX = 1.5e9  # bytes of weights in the graph's own file, which protobuf limits to 2 GB; more lie beside it


class Generator(nn.Module):
    """latents [B, *latent_shape], and what its network takes, each [B, ...] -> samples [B, *sample_shape].

    All steps of the student. What is random is the latents, so the map itself is deterministic.
    """

    def __init__(self, model: GenerativeModel) -> None:
        """Args:
        model: a student.
        """
        super().__init__()
        self.denoiser, self.levels, self.start = model.denoiser, model.sigmas.tolist(), model.start
        self.temperature = model.temperature

    def forward(self, latents: Tensor, *condition: Tensor) -> Tensor:
        named = Condition(dict(zip(self.denoiser.takes, condition, strict=True)))
        latents = latents if self.temperature == 1 else latents * self.temperature
        steps = [latents] if len(self.levels) == 1 else latents.unbind(1)
        x: Any = None  # until the first step
        for latent, level in zip(steps, self.levels, strict=True):
            x = self.denoiser(renoise(x, latent, level, self.start), latent.new_full(latent.shape[:1], level), named)
        return x


def check_program(model: GenerativeModel, program: Program) -> None:
    """Raises ValueError, with the remedy, for a teacher, a student of prompts, or without the packages it takes."""
    if model.kind != "student":
        raise ValueError(f"{program} writes the steps of a student: got a {model.kind}; distil it first")
    if any(not entry.classes for entry in model.denoiser.takes.values()):
        raise ValueError(f"{program} takes latents and classes: got a student of prompts; leave it out")
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if program == "onnx" and missing:
        raise ValueError(f"an ONNX graph needs {' and '.join(missing)}, not found here: pip install 'fdistill[onnx]'")


def write_program(model: GenerativeModel, program: Program, folder: Path) -> Path:
    """Write the artefact into a folder, on the CPU and for any batch size; returns its path.

    Args:
        model: a student; it is moved to the CPU.
        program: kind of artefact.
        folder: an existing one.

    Raises:
        ValueError: for a teacher, or where packages are missing.
    """
    check_program(model, program)
    generator = Generator(model.to("cpu")).eval()
    condition = [torch.zeros(_EXAMPLES, dtype=entry.dtype) for entry in model.denoiser.takes.values()]
    arguments = (torch.zeros(_EXAMPLES, *model.latent_shape), *condition)
    path = folder / FILES[program]
    _WRITERS[program](generator, arguments, path)
    return path


def _write_torch_export(generator: Generator, arguments: tuple[Tensor, ...], path: Path) -> None:
    with torch.no_grad():
        torch.export.save(_exported(generator, arguments), path)


def _write_onnx(generator: Generator, arguments: tuple[Tensor, ...], path: Path) -> None:
    size = sum(tensor.nbytes for tensor in generator.state_dict().values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells that torchvision, which nobody uses, is missing
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        graph = torch.onnx.export(
            _exported(generator, arguments),
            input_names=["latents", *generator.denoiser.takes],
            output_names=["samples"],
            dynamo=True,
            verbose=False,
        )
    graph.save(path, external_data=size > _LARGEST_ONNX)


def _exported(generator: Generator, arguments: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    latents, *condition = ({0: Dim.DYNAMIC} for _ in arguments)
    shapes = (latents, tuple(condition)) if condition else (latents,)
    with _any_batch():
        return torch.export.export(generator, arguments, dynamic_shapes=shapes)


@contextmanager
def _any_batch() -> Iterator[None]:
    """diffusers' upsampling without its branch on batches of 64, of which a program would keep the side it has seen.

    The other side only lays the same numbers out otherwise.
    """
    from diffusers.models.upsampling import Upsample2D

    stock = Upsample2D.forward

    def forward(self: Upsample2D, hidden: Tensor, output_size: int | None = None, *more: Any, **named: Any) -> Tensor:
        if self.norm is not None or self.use_conv_transpose or not self.interpolate or output_size is not None:
            return stock(self, hidden, output_size, *more, **named)
        hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
        if not self.use_conv:
            return hidden
        return (self.conv if self.name == "conv" else self.Conv2d_0)(hidden)

    with patch.object(Upsample2D, "forward", forward):
        yield


_WRITERS: dict[Program, Callable[[Generator, tuple[Tensor, ...], Path], None]] = {
    "torch_export": _write_torch_export,
    "onnx": _write_onnx,
}
