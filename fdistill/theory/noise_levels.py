"""Which noise levels sigma are trained on (densities with a quantile function) and sampled at (grids)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fdistill.theory.paths import NoiseRange, Path

_LARGEST_RATIO = 1e6  # of noise to signal: there single precision rounds x_0 + sigma eps by up to a tenth
_SMALLEST_SHARE = 1e-6  # keeps u away from 0 and 1, where a log-normal has no finite quantile
_LEAST_INSIDE = 0.5  # of the mass of a distribution that is cut: with less it is another one


class NoiseLevels(ABC):
    """A distribution of sigma > 0, given by its quantile function and its inverse."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """sigma below which a share u in (0, 1) of the mass lies."""

    @abstractmethod
    def cdf(self, sigma: Tensor) -> Tensor:
        """Share of the mass below sigma, in [0, 1]; bins of equal probability are equal intervals of it."""

    def sample(self, n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """n independent noise levels, [n] float32; the generator lives on `device`."""
        u = torch.rand(n, generator=generator, device=device)
        return self.quantile(u.clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE))


class LogNormal(NoiseLevels):
    """ln sigma ~ N(mean, std^2); EDM trains with mean -1.2, std 1.2 (arXiv 2206.00364).

    Logit-normal times of rectified flow (Stable Diffusion 3, arXiv 2403.03206) are this law with the same mean and std,
    since logit t = ln(t / (1 - t)) is ln sigma there; so they need no class of their own.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        """Args:
        mean: of ln sigma.
        std: of ln sigma, > 0.
        """
        if not std > 0:
            raise ValueError(f"std of LogNormal is positive: got {std}")
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u)).exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.log() - self.mean) / self.std)


class LogUniform(NoiseLevels):
    """ln sigma uniform between sigma_min and sigma_max."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Args:
        sigma_min: > 0.
        sigma_max: > sigma_min.
        """
        _check_range(sigma_min, sigma_max)
        self.low, self.high = math.log(sigma_min), math.log(sigma_max)

    def quantile(self, u: Tensor) -> Tensor:
        return (self.low + (self.high - self.low) * u).exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma.log() - self.low) / (self.high - self.low)).clamp(0, 1)


class KarrasUniform(NoiseLevels):
    """sigma^(1/rho) uniform, cut to the shares [low, high] of the range: DMD2 draws [0.02, 0.98] (arXiv 2405.14867)."""

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        low: float = 0.02,
        high: float = 0.98,
    ) -> None:
        """Args:
        sigma_min: > 0.
        sigma_max: > sigma_min.
        rho: > 0; larger puts more mass on small sigma.
        low: share of the range left out at the low-noise end.
        high: share of the range at which the high-noise end is cut.
        """
        _check_range(sigma_min, sigma_max)
        if not (rho > 0 and 0 <= low < high <= 1):
            raise ValueError(f"KarrasUniform needs rho > 0 and 0 <= low < high <= 1: got {rho}, {low}, {high}")
        root_min, root_max = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        self.rho = rho
        self.root_low = root_min + low * (root_max - root_min)
        self.root_high = root_min + high * (root_max - root_min)

    def quantile(self, u: Tensor) -> Tensor:
        return (self.root_low + (self.root_high - self.root_low) * u) ** self.rho

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma ** (1 / self.rho) - self.root_low) / (self.root_high - self.root_low)).clamp(0, 1)


class UniformTime(NoiseLevels):
    """sigma at times of a path that are uniform in [t_min, t_max], as DDPM and rectified flow train.

    The time of 1000 discrete steps is their index over 1000, from 0.001 on. At t = 1 the linear path still has signal
    (sigma = 152, so t_max may be 1); the cosine path and rectified flow have none, and stop before it.
    """

    def __init__(self, path: Path, t_min: float = 0.001, t_max: float = 0.999) -> None:
        """Args:
        path: forward process.
        t_min: >= 0; at 0 the share of noise levels near 0 is the path's own.
        t_max: in (t_min, 1], with a noise-to-signal ratio of at most a million.
        """
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"UniformTime needs 0 <= t_min < t_max <= 1: got {t_min} and {t_max}")
        low, high = path.noise_ratio(torch.tensor([t_min, t_max])).tolist()
        if not 0 <= low < high <= _LARGEST_RATIO:
            raise ValueError(
                f"{type(path).__name__} has noise-to-signal ratios {low:.3g} at t_min {t_min} and {high:.3g} at t_max "
                f"{t_max}: expected a rise to at most {_LARGEST_RATIO:.0e}; end below t = 1, say at 0.999"
            )
        self.path, self.t_min, self.t_max = path, t_min, t_max

    def quantile(self, u: Tensor) -> Tensor:
        return self.path.noise_ratio(self.t_min + (self.t_max - self.t_min) * u)

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((self.path.time(sigma) - self.t_min) / (self.t_max - self.t_min)).clamp(0, 1)


class Shifted(NoiseLevels):
    """Another distribution with every noise level times a number.

    Along a flow that is the shift of its times, t -> s t / (1 + (s - 1) t) (arXiv 2403.03206): t / (1 - t) is sigma.
    """

    def __init__(self, noise_levels: NoiseLevels, shift: float) -> None:
        """Args:
        noise_levels: what is shifted.
        shift: > 0, above 1 towards noise.
        """
        if not 0 < shift < math.inf:
            raise ValueError(f"shift is positive and finite: got {shift}")
        self.noise_levels, self.shift = noise_levels, shift

    def quantile(self, u: Tensor) -> Tensor:
        return self.shift * self.noise_levels.quantile(u)

    def cdf(self, sigma: Tensor) -> Tensor:
        return self.noise_levels.cdf(sigma / self.shift)


class Truncated(NoiseLevels):
    """Another distribution, given that sigma lies in a range: its density there, over its mass there."""

    def __init__(self, noise_levels: NoiseLevels, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        """Args:
        noise_levels: what is cut.
        sigma_min: lower end, >= 0.
        sigma_max: upper end, > sigma_min.

        Raises:
            ValueError: for ends out of order, or less than half of the mass between them.
        """
        if not 0 <= sigma_min < sigma_max:
            raise ValueError(f"Truncated needs 0 <= sigma_min < sigma_max: got {sigma_min} and {sigma_max}")
        self.noise_levels, self.sigma_min, self.sigma_max = noise_levels, sigma_min, sigma_max
        self.below, up_to = (self._mass_below(end) for end in (sigma_min, sigma_max))
        self.inside = up_to - self.below
        if not self.inside >= _LEAST_INSIDE:
            raise ValueError(
                f"noise levels are cut to where most of them lie: expected at least {_LEAST_INSIDE:.0%} of "
                f"{type(noise_levels).__name__} between {sigma_min:.6g} and {sigma_max:.6g}, got {self.inside:.2%}; "
                "choose another distribution"
            )

    def _mass_below(self, end: float) -> float:
        if end in (0, math.inf):  # which are no noise levels
            return float(end > 0)
        return float(self.noise_levels.cdf(torch.tensor(end, dtype=torch.float64, device="cpu")))

    def quantile(self, u: Tensor) -> Tensor:
        return self.noise_levels.quantile(self.below + self.inside * u).clamp(self.sigma_min, self.sigma_max)

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((self.noise_levels.cdf(sigma) - self.below) / self.inside).clamp(0, 1)


def cut_to(noise_levels: NoiseLevels, known: NoiseRange) -> NoiseLevels:
    """A distribution of which no draw leaves a range: itself where none does, else `Truncated`, whose errors it has."""
    ends = torch.tensor([_SMALLEST_SHARE, 1 - _SMALLEST_SHARE], dtype=torch.float64, device="cpu")
    if known.first_outside(noise_levels.quantile(ends).tolist()) is None:
        return noise_levels
    return Truncated(noise_levels, *known)


def karras_grid(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Sampling grid of EDM: num_steps levels from sigma_max down to sigma_min, then 0; [num_steps + 1] float64.

    Heun on this grid costs 2 num_steps - 1 network evaluations.
    """
    if num_steps < 1:
        raise ValueError(f"a sampling grid has at least one step: got {num_steps}")
    _check_range(sigma_min, sigma_max)
    share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + share * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max: got {sigma_min} and {sigma_max}")
