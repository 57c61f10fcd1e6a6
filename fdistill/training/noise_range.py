"""Noise levels of a run held against those that its networks know: a number outside is an error, a tail is cut off."""

from lightning.pytorch.utilities import rank_zero_info

from fdistill.models.denoiser import Denoiser
from fdistill.theory.noise_levels import NoiseLevels, Truncated, cut_to
from fdistill.theory.paths import NoiseRange


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
