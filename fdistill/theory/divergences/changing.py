"""Divergences that change while the student trains: `at` tells the one of an update."""

from abc import abstractmethod

from torch import Tensor

from fdistill.theory.divergences.alpha import AlphaDivergence
from fdistill.theory.divergences.base import FDivergence, WeightSlopes
from fdistill.theory.divergences.named import JensenShannon, ReverseKL
from fdistill.theory.schedules import Linear, Schedule


class ChangingDivergence(FDivergence):
    """A plan of divergences over the student's updates: train with `.at(update)`.

    Its own f and weight are those of update 0, and stay so. `needs_ratio` is True if any stage needs a ratio, so that
    the discriminator learns from the first update on. Every schedule inside reads the same clock, the student's updates
    since training began.
    """

    @abstractmethod
    def at(self, update: int) -> FDivergence: ...

    def f(self, r: Tensor) -> Tensor:
        return self.at(0).f(r)

    def weight(self, log_ratio: Tensor) -> Tensor:
        return self.at(0).weight(log_ratio)

    def weight_slopes(self, log_ratio: Tensor) -> WeightSlopes:
        return self.at(0).weight_slopes(log_ratio)


class AnnealedAlpha(ChangingDivergence):
    """`AlphaDivergence` with a scheduled alpha: 0 to 1 goes from reverse KL to forward KL, from modes to coverage."""

    def __init__(self, alpha: Schedule | None = None) -> None:
        """Args:
        alpha: over the student's updates; None is `Linear` from 0 to 1 in 10000.
        """
        self.alpha = Linear(0.0, 1.0, 10_000) if alpha is None else alpha

    def at(self, update: int) -> AlphaDivergence:
        return AlphaDivergence(self.alpha.at(update))


class WarmStart(ChangingDivergence):
    """Another divergence for the first updates, while the ratio is not to be trusted yet."""

    def __init__(
        self, divergence: FDivergence | None = None, updates: int = 1000, first: FDivergence | None = None
    ) -> None:
        """Args:
        divergence: from update `updates` on; None is `JensenShannon`. A schedule in it has been running since update 0:
            its `delay` shifts it.
        updates: how many updates the first divergence is kept, >= 1.
        first: until then; None is `ReverseKL`, which needs no ratio.
        """
        if updates < 1:
            raise ValueError(f"updates of WarmStart are how many the first divergence is kept, >= 1: got {updates}")
        self.first = ReverseKL() if first is None else first
        self.divergence = JensenShannon() if divergence is None else divergence
        self.updates = updates
        self.needs_ratio = self.first.needs_ratio or self.divergence.needs_ratio

    def at(self, update: int) -> FDivergence:
        return (self.first if update < self.updates else self.divergence).at(update)
