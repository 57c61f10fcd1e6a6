"""Raw networks F: each sees a scaled sample, a noise input and labels, and knows nothing of noise schedules."""

from fdistill.networks.base import Encoding, Network
from fdistill.networks.diffusers_unet import DiffusersUNet
from fdistill.networks.gaussian_mixture import GaussianMixture
from fdistill.networks.mlp import MLP
from fdistill.networks.small_unet import SmallUNet

__all__ = ["MLP", "DiffusersUNet", "Encoding", "GaussianMixture", "Network", "SmallUNet"]
