"""Restart: the way down goes back up by fresh noise, and an interval of noise levels is run again."""

from collections.abc import Iterator
from itertools import pairwise

from fdistill.sampling.heun import Heun
from fdistill.theory.noise_levels import karras_grid


class Restart(Heun):
    """Heun; at the lower end of an interval noise is added up to its upper end, and it is run again (arXiv 2306.14878).

    The lower end is the last level of the grid that is not below sigma_low. Each run down from sigma_high costs
    2 num_steps evaluations, on levels of their own.
    """

    def __init__(self, sigma_low: float, sigma_high: float, times: int = 1, num_steps: int = 4) -> None:
        """Args:
        sigma_low: lower end of the interval, > 0.
        sigma_high: upper end, > sigma_low; the grid need not have it.
        times: how often the interval is run again, >= 1.
        num_steps: steps of each such run, on EDM's grid.

        Raises:
            ValueError: for a number outside its range.
        """
        super().__init__()
        if not 0 < sigma_low < sigma_high < float("inf"):
            raise ValueError(f"Restart needs finite 0 < sigma_low < sigma_high: got {sigma_low} and {sigma_high}")
        if times < 1 or num_steps < 1:
            raise ValueError(f"times and num_steps of Restart are at least 1: got {times} and {num_steps}")
        self.sigma_low, self.sigma_high, self.times, self.num_steps = sigma_low, sigma_high, times, num_steps

    @property
    def is_stochastic(self) -> bool:
        return True

    def moves(self, levels: list[float]) -> Iterator[tuple[float, float]]:
        """Raises ValueError where the grid has no level in the interval to restart from."""
        low = min((level for level in levels[1:] if level >= self.sigma_low), default=self.sigma_high)
        if low >= self.sigma_high:
            raise ValueError(
                "Restart goes back up from a level that the grid comes down to: expected one in "
                f"[{self.sigma_low}, {self.sigma_high}), got {', '.join(f'{level:.3g}' for level in levels)}"
            )
        again = karras_grid(self.num_steps + 1, low, self.sigma_high)[:-1].tolist()
        again = [self.sigma_high, *again[1:-1], low]  # the powers of a grid round its ends
        for here, there in pairwise(levels):
            yield here, there
            if there == low:
                for _ in range(self.times):
                    yield low, self.sigma_high
                    yield from pairwise(again)
