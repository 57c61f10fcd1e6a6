"""One objective until the student stands on its feet, another one from then on."""

from torch import nn

from fdistill.data import GenerativeDataModule
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss


class WarmStarted(Objective):
    """`first` for so many updates of the student, then `objective`, whose schedules count from the very start.

    What only the later one needs (a discriminator, say) is built and learns from the beginning; each update evaluates
    what its own objective needs.
    """

    def __init__(self, objective: Objective, first: Objective, updates: int) -> None:
        """Args:
        objective: the one that remains.
        first: the one to start with, reverse KL (`DiffInstruct`) as a rule.
        updates: of the student under `first`, >= 1.
        """
        if updates < 1:
            raise ValueError(f"WarmStarted lasts at least 1 update: got {updates}; use the objective itself")
        self.objective, self.first, self.updates = objective, first, updates

    @property
    def needs(self) -> Needs:
        return self.objective.needs.together(self.first.needs)

    def at(self, update: int) -> Objective:
        return (self.first if update < self.updates else self.objective).at(update)

    def networks(self) -> tuple[nn.Module, ...]:
        return (*self.first.networks(), *self.objective.networks())

    def prepare(self, data: GenerativeDataModule) -> None:
        self.first.prepare(data)
        self.objective.prepare(data)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        return self.at(at.update).loss(at)
