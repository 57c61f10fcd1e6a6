"""Heun's second-order steps of EDM, with churn, and with intervals that are run again."""

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from fdistill.sampling.base import Denoise, Draw, Sampler, slope

_LARGEST_RAISE = math.sqrt(2) - 1  # never more new noise than there is already (arXiv 2206.00364, section 4)


class Heun(Sampler):
    """Second order (EDM algorithm 2, arXiv 2206.00364): 2 evaluations a step, 1 for a last step to 0.

    With churn, each step first adds noise, up to the level (1 + gamma) sigma, gamma = min(churn / N, sqrt(2) - 1).
    """

    def __init__(
        self, churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf, churn_noise: float = 1.0
    ) -> None:
        """Args:
        churn: S_churn >= 0, N times the relative rise of the noise level before a step; 0 is the ODE.
        churn_min: smallest level that is churned, >= 0.
        churn_max: largest level that is churned, >= churn_min.
        churn_noise: S_noise > 0, factor on the standard deviation of the added noise.

        Raises:
            ValueError: for a number outside its range.
        """
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn is finite and not negative: got {churn}")
        if not 0 <= churn_min <= churn_max:
            raise ValueError(f"churn needs 0 <= churn_min <= churn_max: got {churn_min} and {churn_max}")
        if not 0 < churn_noise < math.inf:
            raise ValueError(f"churn_noise is positive and finite: got {churn_noise}")
        self.churn, self.churn_min, self.churn_max, self.added_noise = churn, churn_min, churn_max, churn_noise

    @property
    def is_stochastic(self) -> bool:
        return self.churn > 0

    def moves(self, levels: list[float]) -> Iterator[tuple[float, float]]:
        gamma = min(self.churn / max(len(levels) - 1, 1), _LARGEST_RAISE)
        for here, there in pairwise(levels):
            raised = here
            if gamma > 0 and self.churn_min <= here <= self.churn_max:
                raised = here * (1 + gamma)
                yield here, raised
            yield raised, there

    def step(self, denoise: Denoise, x: Tensor, here: float, there: float, draw: Draw) -> Tensor:
        first = slope(denoise, x, here)
        ahead = x + (there - here) * first
        if there == 0:
            return ahead
        return x + (there - here) / 2 * (first + slope(denoise, ahead, there))

    def evaluated_levels(self, here: float, there: float) -> list[float]:
        return [here, there] if there > 0 else [here]
