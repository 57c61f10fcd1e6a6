"""The variance-preserving path of DDPM and its successors: a finite list of noise levels, one for each timestep."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.theory.paths.base import NOISE_ALONE, VariancePreserving

_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_OFFSET, _LARGEST_BETA = 0.008, 0.999  # of the cosine schedule (arXiv 2102.09672)


class DDPMPath(VariancePreserving):
    """alpha^2 = prod (1 - beta) up to a timestep (arXiv 2006.11239); t = timestep / (num_timesteps - 1).

    Between two timesteps ln(sigma/alpha) is linear in t. The noise ratio of the first timestep is positive, and that of
    the last one finite: `time` gives 0 below the first and 1 above the last.
    """

    def __init__(
        self,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_timesteps: int = 1000,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
    ) -> None:
        """Args:
        beta_start: of the first timestep, in (0, 1).
        beta_end: of the last timestep, in (0, 1).
        num_timesteps: >= 2.
        beta_schedule: linear, scaled_linear (linear square roots) or squaredcos_cap_v2 (cosine, reads neither end).
        trained_betas: num_timesteps numbers in (0, 1), instead of a schedule.
        zero_terminal_snr: shift and scale alpha so that the last timestep is noise alone and the first one as it was
            (arXiv 2305.08891, algorithm 1); its noise ratio is `NOISE_ALONE`.
        """
        if num_timesteps < 2:
            raise ValueError(f"a path of timesteps has at least two: got {num_timesteps}")
        if trained_betas is not None and len(trained_betas) != num_timesteps:
            raise ValueError(f"trained_betas has num_timesteps={num_timesteps} numbers: got {len(trained_betas)}")
        betas = (
            _betas(beta_start, beta_end, num_timesteps, beta_schedule)
            if trained_betas is None
            else torch.tensor(list(trained_betas), dtype=torch.float64)
        )
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                "each beta lies in (0, 1), so that no timestep is without noise or without signal (zero terminal SNR): "
                f"got {float(betas.min()):g} to {float(betas.max()):g}"
            )
        log_variance = torch.log1p(-betas).cumsum(0)  # ln alpha^2
        if zero_terminal_snr:
            alpha = (log_variance / 2).exp()
            log_variance = 2 * ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
        log_ratios = (-torch.expm1(log_variance)).log() / 2 - log_variance / 2
        if zero_terminal_snr:
            log_ratios[-1] = math.log(NOISE_ALONE)
        self.num_timesteps = num_timesteps
        self._log_ratios = {("cpu", torch.float64): log_ratios}

    def alpha(self, t: Tensor) -> Tensor:
        ratio = self.noise_ratio(t)
        return 1 / torch.hypot(ratio, torch.ones_like(ratio))

    def sigma(self, t: Tensor) -> Tensor:
        ratio = self.noise_ratio(t)
        return ratio / torch.hypot(ratio, torch.ones_like(ratio))

    def noise_ratio(self, t: Tensor) -> Tensor:
        low, high, share = self._between(t)
        return torch.lerp(low, high, share).exp()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """In closed form; 0 outside [0, 1].

        ln(sigma/alpha) = l gives d alpha / dt = -sigma^2 alpha l' and d sigma / dt = alpha^2 sigma l'.
        """
        low, high, _ = self._between(t)
        slope = (high - low) * (self.num_timesteps - 1) * ((t >= 0) & (t <= 1))
        alpha, sigma = self.alpha(t), self.sigma(t)
        return -sigma.square() * alpha * slope, alpha.square() * sigma * slope

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ln(sigma/alpha) of the timesteps below and above, and the share of the way between them."""
        known = self._known(t)
        place = t.clamp(0, 1) * (self.num_timesteps - 1)
        below = place.floor().clamp_max(self.num_timesteps - 2)
        first = below.long()
        return known[first], known[first + 1], place - below

    def time(self, noise_ratio: Tensor) -> Tensor:
        known, wanted = self._known(noise_ratio), noise_ratio.log().contiguous()
        above = torch.searchsorted(known, wanted).clamp(1, self.num_timesteps - 1)
        low, high = known[above - 1], known[above]
        share = ((wanted - low) / (high - low)).clamp(0, 1)
        return (above - 1 + share) / (self.num_timesteps - 1)

    def _known(self, like: Tensor) -> Tensor:
        """ln(sigma/alpha) of every timestep, copied once to each device and type that asks."""
        key = (str(like.device), like.dtype)
        if key not in self._log_ratios:
            self._log_ratios[key] = self._log_ratios["cpu", torch.float64].to(like.device, like.dtype)
        return self._log_ratios[key]


def _betas(start: float, end: float, n: int, schedule: str) -> Tensor:
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64)
    if schedule == "scaled_linear":
        if not (start >= 0 and end >= 0):
            raise ValueError(f"scaled_linear takes the square roots of both betas: got {start} and {end}")
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64).square()
    if schedule == "squaredcos_cap_v2":
        angle = (torch.arange(n + 1, dtype=torch.float64) / n + _OFFSET) / (1 + _OFFSET) * math.pi / 2
        power = angle.cos().square()
        return (1 - power[1:] / power[:-1]).clamp_max(_LARGEST_BETA)
    raise ValueError(f"beta_schedule is one of {', '.join(_SCHEDULES)}: got {schedule!r}")
