"""An objective of several steps whose first one keeps to the teacher's trajectory, and so to its diversity."""

from torch import nn

from fdistill.data import GenerativeDataModule
from fdistill.objectives.adversarial import check_weight, is_on
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, per_sample_mean, required
from fdistill.objectives.distribution_matching import DMD2
from fdistill.theory.schedules import Schedule, value_at


class DiversityPreserving(Objective):
    """Another objective for the later steps of a student, and regression for the first (DP-DMD, arXiv 2602.03139).

    The first step learns the mean squared error to an anchor alone: the sample from which one step of Euler goes where
    the teacher's own sampler is after a few steps from the same noise. The others learn the objective alone, from what
    the first one makes; no gradient of theirs goes through it. Every turn makes at least two steps. With DMD as the
    objective this is the published method, whose teacher makes 30 steps.
    """

    def __init__(self, objective: Objective | None = None, weight: float | Schedule = 0.05, after: int = 5) -> None:
        """Args:
        objective: of the later steps; DMD2 without an adversarial term, as published, where none is given.
        weight: of the first step's regression, >= 0; at 0 this is `objective` for all steps.
        after: steps of the teacher's grid from the student's first noise level to the anchor, >= 1.
        """
        check_weight("weight", weight)
        if after < 1:
            raise ValueError(f"an anchor lies after at least 1 step of the teacher: got after={after}")
        self.objective = DMD2(0.0) if objective is None else objective
        self.weight, self.after = weight, after

    @property
    def needs(self) -> Needs:
        return self.objective.needs._replace(anchor=self.after) if is_on(self.weight) else self.objective.needs

    def at(self, update: int) -> Objective:
        now = self.objective.at(update)
        if value_at(self.weight, update) == 0:
            return now
        return self if now is self.objective else DiversityPreserving(now, self.weight, self.after)

    def networks(self) -> tuple[nn.Module, ...]:
        return self.objective.networks()

    def prepare(self, data: GenerativeDataModule) -> None:
        self.objective.prepare(data)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        matching, weight = self.objective.loss(at), value_at(self.weight, at.update)
        if weight != 0:
            first = required(at.first)
            matching.terms["anchor"] = Term(per_sample_mean((first.x - first.target).square()), weight)
        return matching
