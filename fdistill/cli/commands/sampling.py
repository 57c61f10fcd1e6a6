"""How a teacher is sampled, where the command line asks for something else than the model itself says."""

import dataclasses
from typing import Any

from torch import Tensor

from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid


def resampled(
    model: GenerativeModel,
    sampler: Sampler | None = None,
    steps: int | None = None,
    grid: SamplingGrid | None = None,
    guidance: float | None = None,
    guidance_interval: list[float] | None = None,
    guide: str | None = None,
    temperature: float | None = None,
) -> GenerativeModel:
    """The model with what is given in place of its own; None leaves its own.

    Args:
        model: a teacher, unless nothing is given, or a temperature alone.
        sampler: see `fdistill.sampling`.
        steps: of EDM's grid between the model's first level and its last one above 0.
        grid: any other grid.
        guidance: its scale.
        guidance_interval: the noise levels, low and high, between which it acts.
        guide: path of a worse teacher, for autoguidance.
        temperature: of a student.

    Raises:
        ValueError: for a student, settings that exclude each other or would have no effect, or a guide that does not
            fit.
        CheckpointError: if the guide's file cannot be used.
    """
    given = {
        "sampler": sampler,
        "steps": steps,
        "grid": grid,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "guide": guide,
    }
    if temperature is not None:
        model = dataclasses.replace(model, temperature=temperature)
    asked = [f"--{name}" for name, value in given.items() if value is not None]
    if not asked:
        return model
    if model.kind != "teacher":
        raise ValueError(f"a student is sampled by the steps it was trained with: leave {', '.join(asked)} out")
    if steps is not None and grid is not None:
        raise ValueError("steps are of EDM's grid between the teacher's own levels: give --steps or --grid, not both")
    changes: dict[str, Any] = {"sampler": sampler or model.sampler, "sigmas": _grid(model, steps, grid)}
    if {"guidance", "guidance_interval", "guide"} & {name for name, value in given.items() if value is not None}:
        changes["guidance"] = _guidance(model, guidance, guidance_interval, guide)
    visits = changes["sampler"].visits(changes["sigmas"])  # a sampler that cannot use the grid says so before any work
    model.denoiser.noise_range.check("each level of a grid", visits)
    changed = dataclasses.replace(model, **changes)
    own = Guidance.of(changed.guidance)
    if own.scale != 1 and not any(own.cost(model.denoiser, level) > 1 for level in visits):
        raise ValueError(
            f"guidance acts at none of the levels from {visits[0]:.3g} to {visits[-1]:.3g}: expected an interval with "
            f"one of them, got ({own.sigma_low:g}, {own.sigma_high:g}]"
        )
    return changed


def _grid(model: GenerativeModel, steps: int | None, grid: SamplingGrid | None) -> Tensor:
    if grid is not None:
        return grid.levels()
    return model.sigmas if steps is None else model.edm_grid(steps)


def _guidance(
    model: GenerativeModel, scale: float | None, interval: list[float] | None, guide: str | None
) -> float | Guidance:
    own = Guidance.of(model.guidance)
    if scale == 1 and interval is None and guide is None:
        return 1.0
    worse = own.guide if guide is None else _teacher(guide)
    if worse is None and not model.denoiser.takes:
        raise ValueError("guidance of a model without condition needs a worse teacher: give --guide, or leave it out")
    size: Any = (own.rescale, own.norm)
    return Guidance.limited(own.scale if scale is None else scale, interval or own.interval, worse, *size)


def _teacher(guide: str) -> Denoiser:
    model = load_model(guide)
    if model.kind != "teacher":
        raise ValueError(f"a guide denoises at every noise level: {guide} holds a {model.kind}")
    return model.denoiser
