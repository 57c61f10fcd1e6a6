"""The steps of a student, of the samplers' signature: D, and D of its last sample noised anew."""

import itertools
import math
from typing import Literal

from torch import Tensor

from fdistill.models.condition import Conditioned
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance

Start = Literal["sigma", "unit"]
"""What noise z becomes at the first level: sigma z, or sqrt(1 + sigma^2) z, which has unit variance on a
variance-preserving path. So stock pipelines start there (LCM, DDIM); the two differ by 0.2% at Stable Diffusion's last
timestep, and not at all where sigma stands for infinity.
"""


def check_start(start: Start) -> Start:
    """`start`; ValueError for any other."""
    if start not in ("sigma", "unit"):
        raise ValueError(f"a first step starts from noise of scale sigma or of unit variance: got {start!r}")
    return start


def check_temperature(temperature: float) -> float:
    """`temperature`; ValueError where it is not positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature scales noise, 1 leaves it as it was trained on: got {temperature}")
    return temperature


def start_scale(sigma: float, start: Start) -> float:
    """The factor of z at the first level."""
    return sigma if start == "sigma" else math.hypot(1.0, sigma)


def one_step(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    condition: Conditioned = None,
    guidance: float | Guidance = 1.0,
    start: Start = "sigma",
) -> Tensor:
    """G(z) = D(sigma z, sigma): one evaluation at sigmas[0]. noise is standard normal, [B, *sample_shape]."""
    level = check_grid(sigmas)[0]
    return Guidance.of(guidance)(denoiser, renoise(None, noise, level, start), level, condition)


def multi_step(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    condition: Conditioned = None,
    guidance: float | Guidance = 1.0,
    start: Start = "sigma",
    first: tuple[Denoiser, float | Guidance] | None = None,
) -> Tensor:
    """K evaluations, each of the last one's sample noised anew (arXiv 2303.01469, algorithm 1 at epsilon = 0).

    x = D(sigma_1 z_1, sigma_1), then x = D(x + sigma_k z_k, sigma_k) for k = 2 .. K, at sigmas that stay above 0.
    noise holds every z_k, standard normal [B, K, *sample_shape]; a sample is a function of its own. Where `first` is
    given, that denoiser makes the first step with its guidance.
    """
    if len(sigmas) == 0 or sigmas[-1] <= 0 or noise.shape[1:2] != sigmas.shape:
        raise ValueError(
            "a student of several steps has one block of noise [B, K, ...] for each of its K positive levels: "
            f"got noise of shape {tuple(noise.shape)} and levels {sigmas.tolist()}"
        )
    x, levels = None, check_grid(sigmas)
    made_by = [(denoiser, guidance) if first is None else first, *[(denoiser, guidance)] * (len(levels) - 1)]
    for z, level, (by, how) in zip(noise.unbind(1), levels, made_by, strict=True):
        x = Guidance.of(how)(by, renoise(x, z, level, start), level, condition)
    assert x is not None
    return x


def renoise(x: Tensor | None, z: Tensor, sigma: Tensor | float, start: Start = "sigma") -> Tensor:
    """What a step of a student sees: x + sigma z, or what `start` says in the first step, which has no sample yet.

    Args:
        x: what the step before made, [B, *sample_shape]; None for the first.
        z: standard normal, [B, *sample_shape].
        sigma: noise level > 0 of the step, one for all or one for each sample [B].
        start: of the first step; "unit" for one level for all.

    Raises:
        ValueError: where x or sigma does not fit z.
    """
    if isinstance(sigma, Tensor):
        if sigma.shape not in ((), z.shape[:1]):
            raise ValueError(f"sigma is one noise level, or one per sample ({len(z)}): got shape {tuple(sigma.shape)}")
        sigma = sigma.to(z).reshape(-1, *[1] * (z.ndim - 1))
    if x is None:
        return (sigma if isinstance(sigma, Tensor) else start_scale(sigma, start)) * z
    if x.shape != z.shape:
        raise ValueError(f"samples get noise of their own shape: expected {tuple(x.shape)}, got {tuple(z.shape)}")
    return x + sigma * z


def check_grid(sigmas: Tensor) -> list[float]:
    """The levels of a sampling grid, or ValueError where they do not fall strictly from a positive one to >= 0."""
    levels = sigmas.tolist() if sigmas.ndim == 1 else []
    falls = all(high > low for high, low in itertools.pairwise(levels))  # a nan falls nowhere
    if not (levels and levels[0] > 0 and falls and levels[-1] >= 0):
        raise ValueError(f"a sampling grid falls strictly from a positive level to >= 0: got {sigmas.tolist()}")
    return levels
