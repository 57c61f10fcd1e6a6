"""What networks descend: denoising, distribution matching, the log ratio, rewards. It imports evaluation and below."""

from fdistill.objectives.adversarial import Adversarial, Balance, discriminator_loss
from fdistill.objectives.base import Needs, NoisedSamples, Objective, Regression, StudentLoss, Term
from fdistill.objectives.denoising import denoising_loss, weighted_denoising_loss
from fdistill.objectives.distribution_matching import (
    DMD,
    DMD2,
    SDS,
    VSD,
    BregmanMatching,
    DiffInstruct,
    FDistill,
    ScoreOfMixture,
    matching_direction,
)
from fdistill.objectives.diversity import DiversityPreserving
from fdistill.objectives.monge import MongeRegularised
from fdistill.objectives.normalisers import sample_normaliser, sigma_normaliser
from fdistill.objectives.reward import RewardAugmented, TiltedTeacher
from fdistill.objectives.score_identity import SIM, Fisher, SiD, SiDA
from fdistill.objectives.uni_instruct import UniInstruct
from fdistill.objectives.warm_start import WarmStarted

__all__ = [
    "DMD",
    "DMD2",
    "SDS",
    "SIM",
    "VSD",
    "Adversarial",
    "Balance",
    "BregmanMatching",
    "DiffInstruct",
    "DiversityPreserving",
    "FDistill",
    "Fisher",
    "MongeRegularised",
    "Needs",
    "NoisedSamples",
    "Objective",
    "Regression",
    "RewardAugmented",
    "ScoreOfMixture",
    "SiD",
    "SiDA",
    "StudentLoss",
    "Term",
    "TiltedTeacher",
    "UniInstruct",
    "WarmStarted",
    "denoising_loss",
    "discriminator_loss",
    "matching_direction",
    "sample_normaliser",
    "sigma_normaliser",
    "weighted_denoising_loss",
]
