"""A teacher of a ring of eight modes that is exact, and one whose eps is shrunk towards the mean at high noise."""

import torch

from fdistill.data import GaussianMixtureData
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

FROM = 0.7  # noise level from which the crowded one is wrong
DATA = {"num_modes": 8, "std": 0.3, "num_samples": 2000, "num_held_out": 1000}


class Crowded(GaussianMixture):
    """The exact denoiser below FROM; above, its eps is a fifth too large, which draws all samples to the middle."""

    def decode(self, encoding):
        x, sigma = encoding.state
        exact = super().decode(encoding)
        return torch.where(sigma[:, None] > FROM, exact - 0.2 * (x - exact), exact)


def ring_data():
    return GaussianMixtureData(**DATA)


def ring_teacher(kind=GaussianMixture, **arguments):
    """18 steps between 0.02 and 80; facts say what data it is of."""
    network = kind(**ring_data().exact_network().spec()["init_args"])
    denoiser = Denoiser(network, X0Prediction(VarianceExploding()))
    return GenerativeModel.teacher(denoiser, 18, 0.02, 80.0, facts={"data": ring_data().spec()}, **arguments)
