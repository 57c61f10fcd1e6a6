"""Noise levels of a run held against those that its networks know: a number outside is an error, a tail is cut off."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from fdistill.core.weight_files import CheckpointError
from fdistill.models.denoiser import Denoiser
from fdistill.sampling.start_level import diverse_level
from fdistill.theory.noise_levels import NoiseLevels, Truncated, cut_to
from fdistill.theory.paths import NOISE_ALONE, DDPMPath, NoiseRange
from fdistill.training.argument_checks import First, check_levels


def known_by(*denoisers: Denoiser | None) -> NoiseRange:
    """The noise levels that all of these networks know; None is no network.

    Raises:
        ValueError: where they have none in common.
    """
    known = NoiseRange().shared(*(denoiser.noise_range for denoiser in denoisers if denoiser is not None))
    if not known.low < known.high:
        raise ValueError(
            "teacher, guide and fake score are evaluated at the same noise levels: expected paths that share some, got "
            f"none above {known.low:.6g} and below {known.high:.6g}"
        )
    return known


def student_levels(
    sigma_init: First | None, renoise_levels: Sequence[float], times: Sequence[float], teacher: Denoiser
) -> tuple[float, ...]:
    """All noise levels of a student, falling, from noise levels or from times of its teacher's path.

    Args:
        sigma_init: the first level, or "auto"; None where there are times.
        renoise_levels: the others.
        times: timesteps from 0 to N - 1, on a path that counts them; else t in (0, 1], where noise alone is
            `NOISE_ALONE`.
        teacher: whose path it is.

    Raises:
        ValueError: for both or neither, times outside of the path or of a teacher without one, or what `check_levels`
            refuses.
    """
    if not times:
        if sigma_init is None:
            raise ValueError("a student starts from sigma_init, or from the first of student_times: got neither")
        return check_levels(_found(teacher) if isinstance(sigma_init, str) else sigma_init, renoise_levels)
    if sigma_init is not None or renoise_levels:
        raise ValueError(
            "student_times name all levels of a student: leave sigma_init (null) and renoise_levels out, got "
            f"{sigma_init} and {list(renoise_levels)}"
        )
    path = getattr(teacher.preconditioning, "path", None)
    if path is None:
        raise ValueError(
            f"student_times are of a path: the teacher's {type(teacher.preconditioning).__name__} has none; give "
            "sigma_init"
        )
    last = path.num_timesteps - 1 if isinstance(path, DDPMPath) else 1
    if not all(0 <= time <= last for time in times):
        raise ValueError(f"student_times of a {type(path).__name__} lie between 0 and {last}: got {list(times)}")
    ratios = path.noise_ratio(torch.tensor(times, dtype=torch.float64) / last).nan_to_num(NOISE_ALONE)
    first, *others = ratios.clamp_max(NOISE_ALONE).tolist()
    return check_levels(first, others)


def _found(teacher: Denoiser) -> float:
    """The level at which the teacher makes of noise what is diverse, said in one line; 1 for one without weights."""
    if any(parameter.is_meta for parameter in teacher.parameters()):
        return 1.0  # a plan: its turns cost the same at every level
    level = diverse_level(teacher)
    end = ", the end of the teacher's path" if level >= teacher.noise_range.high else ""
    rank_zero_info(f"sigma_init auto: the student starts from noise of {level:g}{end}")
    return level


def check_same_start(record: dict[str, Any], levels: tuple[float, ...]) -> None:
    """Raises CheckpointError where a run that found its first level would find another one now."""
    before = record["sigmas"][0]
    if before != levels[0]:
        raise CheckpointError(
            f"this run starts from sigma_init {before:g}, and auto finds {levels[0]:g} now, as on another processor: "
            f"continue with --model.sigma_init {before:g}"
        )


def check_on_path(levels: tuple[float, ...], student: Denoiser) -> None:
    """Raises ValueError where the student would take a step at a noise level that its network does not know."""
    student.noise_range.check("sigma_init", levels[:1])
    student.noise_range.check("each of renoise_levels", levels[1:])


def levels_on_path(name: str, noise_levels: NoiseLevels, known: NoiseRange) -> NoiseLevels:
    """The distribution, cut to the noise levels that networks know; what is cut off is logged in one line.

    Raises:
        ValueError: where less than half of it would remain.
    """
    try:
        cut = cut_to(noise_levels, known)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if isinstance(cut, Truncated) and cut is not noise_levels:
        rank_zero_info(
            f"{name}: {1 - cut.inside:.2%} of {type(noise_levels).__name__} lies outside of the teacher's path "
            f"(sigma from {known.low:.6g} to {known.high:.6g}) and is cut off"
        )
    return cut
