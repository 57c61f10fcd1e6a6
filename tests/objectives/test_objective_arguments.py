"""Arguments out of range are refused in one line that names the rule and what was given."""

import functools
import math

import pytest
from objective_claims import Nearness

from fdistill.objectives import (
    DMD,
    DMD2,
    SIM,
    Adversarial,
    Balance,
    DiffInstruct,
    FDistill,
    Fisher,
    MongeRegularised,
    RewardAugmented,
    ScoreOfMixture,
    SiD,
    SiDA,
    TiltedTeacher,
    UniInstruct,
    WarmStarted,
)
from fdistill.objectives.image_rewards import Compressibility
from fdistill.theory.divergences import JensenShannon

NORMALISED = [
    functools.partial(FDistill, JensenShannon()),
    functools.partial(UniInstruct, JensenShannon()),
    DiffInstruct,
    DMD,
    DMD2,
    Fisher,
    ScoreOfMixture,
    SiD,
    SiDA,
    SIM,
]


@pytest.mark.parametrize("build", NORMALISED, ids=lambda build: getattr(build, "func", build).__name__)
def test_unknown_normaliser_is_refused_with_the_known_ones(build):
    with pytest.raises(ValueError, match="mean"):
        build(normaliser="mean")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FDistill(JensenShannon(), -0.1), "adversarial_weight"),
        (lambda: DMD2(math.nan), "adversarial_weight"),
        (lambda: SiDA(math.inf), "adversarial_weight"),
        (lambda: Adversarial(0.0), "> 0: got 0"),
        (lambda: Adversarial(Balance(0.3)), "> 0: got a Balance with no other term"),
        (lambda: Balance(0.0), "share is finite and above 0: got 0.0"),
        (lambda: Balance(math.nan), "share is finite and above 0: got nan"),
        (lambda: DMD(0.0), "regression_weight"),
        (lambda: SIM(c=0.0), "SIM"),
        (lambda: ScoreOfMixture(0.7, 0.3), "high"),
        (lambda: ScoreOfMixture(0.0, 1.5), "got 0.0 and 1.5"),
        (lambda: UniInstruct(JensenShannon(), "rough"), "normalised"),
        (lambda: UniInstruct(JensenShannon(), clip=0.0), "UniInstruct"),
        (lambda: RewardAugmented(SiD(), Nearness(), -1.0), "beta"),
        (lambda: RewardAugmented(SiD(), Compressibility(), 1.0), "best_of"),
        (lambda: TiltedTeacher(DMD2(), Nearness(), math.nan), "beta"),
        (lambda: TiltedTeacher(DMD2(), Compressibility(), 1.0), "RewardTuningModule"),
        (lambda: TiltedTeacher(FDistill(JensenShannon()), Nearness(), 1.0), "FDistill"),
        (lambda: TiltedTeacher(Adversarial(), Nearness(), 1.0), "Adversarial"),
        (lambda: MongeRegularised(SiD(), -0.5), "weight"),
        (lambda: MongeRegularised(SiD(), 1.0, math.nan), "MongeRegularised"),
        (lambda: WarmStarted(SiD(), DiffInstruct(), 0), "update"),
    ],
)
def test_argument_out_of_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
