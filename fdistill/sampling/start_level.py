"""The noise level for a student to start from: where one denoising of pure noise is about as diverse as it can be.

A student's first sample is its teacher's D(sigma z). At high sigma that is the mean (of its condition) whatever z is;
at low sigma z is hardly there. Between them its variance has a maximum, for Gaussian data of deviation s

    Var D(sigma z) = s^4 sigma^2 / (s^2 + sigma^2)^2, at sigma = s, where it is s^2 / 4.

sigma z has the variance sigma^2, what a teacher saw at that level s^2 + sigma^2: the higher the level, the less foreign
is its first input. So the level is the highest at which the variance is still three quarters of the largest, sqrt(3) s
for Gaussian data. The variance is that within a condition, of pairs of z.
"""

import math

import torch

from fdistill.core.random import generator_for
from fdistill.models.condition import Condition, declared
from fdistill.models.denoiser import Denoiser

SHARE = 0.75  # of the largest variance
LOWEST, HIGHEST = 0.01, 100.0  # where it is looked for
_PER_OCTAVE = 2  # levels; the largest value lies between them
_HALVINGS = 8  # of the interval in which the variance falls below its share


def diverse_level(denoiser: Denoiser, pairs: int = 32, seed: int = 0) -> float:
    """The level sigma, of three digits; the end of the path where the variance stays above its share up to there.

    Args:
        denoiser: D, whose condition is nothing or classes, which are drawn with equal chances.
        pairs: of latents and conditions; each level takes two evaluations of every pair, about 35 levels are looked at.
        seed: of the latents and conditions.

    Raises:
        ValueError: for another condition, or a D that makes the same of all noise.
    """
    low, high = (min(max(end, LOWEST), HIGHEST) for end in denoiser.noise_range)
    count = max(2, math.ceil(_PER_OCTAVE * math.log2(high / low)) + 1)
    logs = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).tolist()
    variances = [denoised_variance(denoiser, math.exp(log), pairs, seed) for log in logs]
    largest = _largest(variances)
    if not 0 < largest < math.inf:
        raise ValueError(
            "a teacher's denoised noise tells where to start: expected samples that differ and are finite, got a "
            f"variance of {largest:g}; give sigma_init a number"
        )
    top = variances.index(max(variances))
    below = next((i for i in range(top + 1, count) if variances[i] < SHARE * largest), None)
    if below is None:
        return high
    inside, outside = logs[below - 1], logs[below]
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if denoised_variance(denoiser, math.exp(middle), pairs, seed) < SHARE * largest:
            outside = middle
        else:
            inside = middle
    return min(high, float(f"{math.exp(inside):.3g}"))


@torch.no_grad()
def denoised_variance(denoiser: Denoiser, sigma: float, pairs: int, seed: int) -> float:
    """Mean over entries of the variance of D(sigma z, sigma) within a condition: E (D(z) - D(z'))^2 / 2.

    Every level has the same latents and conditions, so that the curve over sigma is smooth.
    """
    device = next((tensor.device for tensor in denoiser.state_dict().values()), torch.device("cpu"))
    z = torch.randn(2 * pairs, *denoiser.sample_shape, generator=generator_for(seed, device=device), device=device)
    levels = torch.full((2 * pairs,), sigma, device=device)
    one, other = denoiser(sigma * z, levels, _conditions(denoiser, pairs, seed).to(device)).chunk(2)
    return float((one - other).double().square().mean() / 2)


def _conditions(denoiser: Denoiser, pairs: int, seed: int) -> Condition:
    """Of the pairs' first samples, then of their second ones."""
    takes = denoiser.takes
    if any(not entry.classes for entry in takes.values()):
        raise ValueError(
            f"sigma_init auto draws conditions, and can draw classes only: this teacher takes {declared(takes)}; give "
            "sigma_init a number"
        )
    drawn = {
        name: torch.randint(entry.classes, (pairs,), generator=generator_for(seed, 1, index)).repeat(2)
        for index, (name, entry) in enumerate(takes.items())
    }
    return Condition(drawn)


def _largest(values: list[float]) -> float:
    """The top of the parabola through the logarithms of the largest value and its neighbours."""
    top = values.index(max(values))
    near = values[max(0, top - 1) : top + 2]
    if len(near) < 3 or min(near) <= 0:
        return values[top]
    left, middle, right = map(math.log, near)
    curvature = left - 2 * middle + right
    return math.exp(middle - (right - left) ** 2 / (8 * curvature)) if curvature < 0 else values[top]
