"""An objective beside which the student keeps near the shortest ways from its latents: L + weight * Monge gap."""

import math

import torch
from torch import nn

from fdistill.data import GenerativeDataModule
from fdistill.evaluation.metrics import monge_gap
from fdistill.objectives.adversarial import check_weight, is_on
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, required
from fdistill.theory.schedules import Schedule, value_at


class MongeRegularised(Objective):
    """Another objective, and the Monge gap of a one-step student between its latents and samples (arXiv 2302.04953).

    It chooses among maps of the same law: where two students match the teacher, the one with the smaller gap moves its
    latents less. Like the other losses it counts per entry of a sample. Latents are standard normal, and each class has
    a map of its own. The gap is that of the batch on each rank: for small data and wide batches, since in many
    dimensions it vanishes (`fdistill.evaluation.metrics.monge_gap`); a constant map has none, so it does not keep from
    collapse.
    """

    def __init__(self, objective: Objective, weight: float | Schedule, epsilon: float = 0.0) -> None:
        """Args:
        objective: what is descended beside the gap.
        weight: of the gap, >= 0; 0 computes none.
        epsilon: of the entropic coupling, in units of a squared distance; 0 for the exact assignment, which is
            faster than one too small for Sinkhorn's iteration.
        """
        check_weight("weight", weight)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon of MongeRegularised is finite and not negative: got {epsilon}; 0 is exact")
        self.objective, self.weight, self.epsilon = objective, weight, epsilon

    @property
    def needs(self) -> Needs:
        return self.objective.needs._replace(latents=True) if is_on(self.weight) else self.objective.needs

    def at(self, update: int) -> Objective:
        now = self.objective.at(update)
        return self if now is self.objective else MongeRegularised(now, self.weight, self.epsilon)

    def networks(self) -> tuple[nn.Module, ...]:
        return self.objective.networks()

    def prepare(self, data: GenerativeDataModule) -> None:
        self.objective.prepare(data)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        matching = self.objective.loss(at)
        if is_on(self.weight):
            # samples that are not finite are for the guarded step to report, on every rank
            finite = bool(torch.isfinite(at.x).all())
            latents = required(at.latents)
            gap = monge_gap(latents, at.x, self.epsilon, at.condition.groups(), strict=False) if finite else at.x.sum()
            cost = (gap / at.x[0].numel()).to(at.x.dtype).expand(len(at.x))
            matching.terms["monge"] = Term(cost, value_at(self.weight, at.update))
        return matching
