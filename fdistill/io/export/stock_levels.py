"""A student's noise levels in the words of diffusers' CMStochasticIterativeScheduler: a power law at whole timesteps.

With sigma_min = 0 its level at timestep i of N is sigma_max (1 - i / (N - 1))^rho, and the noise that it adds between
two steps has exactly the next level. Two levels are met by a rho of their own; so are any number that lie like
(1 - k / K)^rho. For three or four others N is so large that one rho puts all of them at whole timesteps; for more of
them that are round decimals, rho = 1 does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_TIMESTEPS = (1_001, 10_001, 100_001, 1_000_001)  # tried in turn; diffusers keeps arrays as long
_EXPONENTS = (0.1, 100.0)  # rho between which powers of noise levels stay finite and exact
_TOLERANCE = torch.finfo(torch.float32).eps  # of a level, relative: the network reads levels in float32


class StockLevels(NamedTuple):
    """What the scheduler and the call of its pipeline take."""

    num_train_timesteps: int
    rho: float
    timesteps: list[int]  # falling to 0, in the order that the pipeline's argument has

    @property
    def arguments(self) -> str:
        """Of the call of ConsistencyModelPipeline, as Python."""
        steps = len(self.timesteps)
        if steps == self.num_train_timesteps - 1:  # every timestep in turn is what diffusers takes by itself
            return f"num_inference_steps={steps}"
        return f"num_inference_steps=None, timesteps={self.timesteps}"


def stock_levels(sigmas: Tensor) -> StockLevels | None:
    """The scheduler's settings whose levels are `sigmas` up to float32's rounding; None where there are none.

    Args:
        sigmas: sigma_1 > ... > sigma_K > 0, float64 [K].
    """
    if len(sigmas) == 1:
        return StockLevels(40, 7.0, [0])  # diffusers' defaults; the first level is sigma_max whatever they are
    for number in (len(sigmas) + 1, *_TIMESTEPS):
        found = _nearest(sigmas, number)
        if found is not None:
            return found
    return None


def _nearest(sigmas: Tensor, number: int) -> StockLevels | None:
    """The best of all settings with this many timesteps, each having the first two levels exactly."""
    logs = (sigmas[1:] / sigmas[0]).log()
    share = torch.arange(1, number - 1, dtype=torch.float64) / (number - 1)
    rho = logs[0] / torch.log1p(-share)
    rho = rho[(rho > _EXPONENTS[0]) & (rho < _EXPONENTS[1])][:, None]
    steps = ((number - 1) * -torch.expm1(logs / rho)).round()
    errors = (rho * torch.log1p(-steps / (number - 1)) - logs).abs().amax(1)
    if not (errors < _TOLERANCE).any():
        return None
    best = int(errors.argmin())
    return StockLevels(number, float(rho[best]), [*map(int, steps[best].flip(0).tolist()), 0])
