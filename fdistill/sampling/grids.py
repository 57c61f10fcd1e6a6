"""Sampling grids: the noise levels at which an ODE or SDE is stepped, strictly falling, in variance-exploding sigma."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.core.spec import Described
from fdistill.theory.noise_levels import karras_grid
from fdistill.theory.paths import Path, VarianceExploding

_ROUNDING = 1e-6  # relative difference of a noise level and that of its own time which arithmetic explains


class SamplingGrid(Described, ABC):
    """Levels that a sampler visits; the first is where noise enters."""

    @abstractmethod
    def levels(self) -> Tensor:
        """sigma_0 > ... > sigma_N >= 0, [N + 1] float64; sigma_0 is finite."""


class KarrasGrid(SamplingGrid):
    """sigma^(1/rho) equally spaced, then 0 (arXiv 2206.00364, equation 5)."""

    def __init__(
        self, num_steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        """Args:
        num_steps: N >= 1.
        sigma_min: last level above 0.
        sigma_max: first level, > sigma_min, finite.
        rho: > 0; larger puts more levels at little noise.
        """
        if not rho > 0:
            raise ValueError(f"rho of a Karras grid is positive: got {rho}")
        _check_start(sigma_max)
        self._levels = _falling(karras_grid(num_steps, sigma_min, sigma_max, rho))

    def levels(self) -> Tensor:
        return self._levels.clone()


class PathGrid(SamplingGrid):
    """Equally spaced times of a path. A denoiser of any other Gaussian path samples on it without retraining."""

    def __init__(self, path: Path, num_steps: int, sigma_max: float, sigma_min: float = 0.0) -> None:
        """Args:
        path: whose times they are.
        num_steps: N >= 1.
        sigma_max: first level, finite, one that the path reaches.
        sigma_min: last level above 0, which a last step to 0 follows; at 0 the times run down to the path's own 0.
        """
        if num_steps < 1:
            raise ValueError(f"a sampling grid has at least one step: got {num_steps}")
        _check_start(sigma_max)
        if not 0 <= sigma_min < sigma_max:
            raise ValueError(f"a path grid needs 0 <= sigma_min < sigma_max: got {sigma_min} and {sigma_max}")
        name, zero = type(path).__name__, torch.zeros((), dtype=torch.float64)
        if sigma_min == 0 and float(path.sigma(zero)) != 0:
            raise ValueError(
                f"sampling to zero noise needs a path that starts there: expected sigma(0) = 0 of {name}, "
                f"got {float(path.sigma(zero)):.3g}; give a sigma_min of at least {float(path.noise_ratio(zero)):.8g}"
            )
        inside = num_steps + (sigma_min == 0)  # levels but for a 0 that is no time of the path
        first, last = (_time(path, sigma) if sigma else zero for sigma in (sigma_max, sigma_min))
        levels = path.noise_ratio(first + torch.linspace(0, 1, inside, dtype=torch.float64) * (last - first))
        levels[0] = sigma_max
        if inside > 1:
            levels[-1] = sigma_min  # both as they were asked for, without the rounding of there and back
        self._levels = _falling(levels if sigma_min == 0 else torch.cat([levels, zero[None]]))

    def levels(self) -> Tensor:
        return self._levels.clone()


class GivenGrid(SamplingGrid):
    """Levels given by hand."""

    def __init__(self, levels: Sequence[float]) -> None:
        """Args:
        levels: at least two, strictly falling, the first finite and the last >= 0.
        """
        self._levels = _falling(torch.tensor(list(levels), dtype=torch.float64))

    def levels(self) -> Tensor:
        return self._levels.clone()


def _time(path: Path, sigma: float) -> Tensor:
    """The time at which a path has a noise level, or ValueError where it never has."""
    asked = torch.tensor(sigma, dtype=torch.float64)
    t = path.time(asked)
    reached = float(path.noise_ratio(t.clamp(0, 1)))
    if isinstance(path, VarianceExploding):  # its time is the noise level, without an end
        return t
    if not abs(reached - sigma) <= _ROUNDING * sigma:
        raise ValueError(
            f"{type(path).__name__} does not pass through every noise level: expected one of its own, "
            f"got {sigma:.8g} (nearest {reached:.8g})"
        )
    return t


def _check_start(sigma_max: float) -> None:
    if not (math.isfinite(sigma_max) and sigma_max > 0):
        raise ValueError(f"a sampling grid starts at a finite noise level: expected sigma_max > 0, got {sigma_max}")


def _falling(levels: Tensor) -> Tensor:
    falls = levels.ndim == 1 and len(levels) > 1 and levels[0].isfinite() and (levels.diff() < 0).all()
    if not (falls and levels[-1] >= 0):  # a nan falls nowhere
        raise ValueError(
            f"a sampling grid falls strictly from a finite level to one >= 0, at least once: got {levels.tolist()}"
        )
    return levels
