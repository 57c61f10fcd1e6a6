"""Every concrete objective with arguments that make all of its terms count, and modules that learn by them."""

import inspect

from tiny_runs import distillation, mlp

from fdistill.objectives import (
    DMD,
    DMD2,
    SDS,
    SIM,
    VSD,
    Adversarial,
    BregmanMatching,
    DiffInstruct,
    DiversityPreserving,
    FDistill,
    Fisher,
    MongeRegularised,
    Objective,
    RewardAugmented,
    ScoreOfMixture,
    SiD,
    SiDA,
    TiltedTeacher,
    UniInstruct,
    WarmStarted,
)
from fdistill.objectives.rewards import TargetReward
from fdistill.theory.divergences import BregmanLogistic, ForwardKL, JensenShannon

OBJECTIVES = {
    "Adversarial": Adversarial,
    "BregmanMatching": lambda: BregmanMatching(BregmanLogistic(), 0.1, "sigma"),
    "DMD": DMD,
    "DMD2": lambda: DMD2(0.1),
    "DiffInstruct": DiffInstruct,
    "DiversityPreserving": lambda: DiversityPreserving(DMD2(0.1), after=2),
    "FDistill": lambda: FDistill(JensenShannon(), 0.1, "sigma"),
    "Fisher": Fisher,
    "MongeRegularised": lambda: MongeRegularised(DiffInstruct(), 0.1),
    "RewardAugmented": lambda: RewardAugmented(SiD(), TargetReward([1.0, 0.0]), 0.1),
    "SDS": SDS,
    "SIM": SIM,
    "ScoreOfMixture": lambda: ScoreOfMixture(adversarial_weight=0.1),
    "SiD": SiD,
    "SiDA": lambda: SiDA(0.1),
    "TiltedTeacher": lambda: TiltedTeacher(DMD2(0.1), TargetReward([1.0, 0.0]), 0.1),
    "UniInstruct": lambda: UniInstruct(ForwardKL()),
    "VSD": VSD,
    "WarmStarted": lambda: WarmStarted(SiDA(0.1), DiffInstruct(), 1),
}


def concrete(base):
    below = [found for sub in base.__subclasses__() for found in concrete(sub)]
    return below if inspect.isabstract(base) else [base, *below]


SHIPPED = {found.__name__ for found in concrete(Objective) if found.__module__.startswith("fdistill.")}


def learning_by(objective, **changes):
    """A module whose student starts away from its teacher, of several steps where its objective is for these."""
    several = {"renoise_levels": [0.8, 0.3]} if objective.needs.anchor else {}
    return distillation(objective=objective, **{"student": mlp(seed=1)} | several | changes)


class Asking:
    """Wraps an objective's loss, and keeps what it was asked with."""

    def __init__(self, objective):
        self.seen, loss = [], objective.loss

        def asked(at):
            self.seen.append(at)
            return loss(at)

        objective.loss = asked
