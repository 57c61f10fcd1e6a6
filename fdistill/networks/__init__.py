"""Raw networks F: each sees a scaled sample, a noise input and labels, and knows nothing of noise schedules."""

from fdistill.networks.base import Encoding, Network, train_without_dropout
from fdistill.networks.diffusers_unet import DiffusersUNet
from fdistill.networks.edm2_unet import EDM2UNet
from fdistill.networks.gaussian_mixture import GaussianMixture
from fdistill.networks.mlp import MLP
from fdistill.networks.small_unet import SmallUNet
from fdistill.networks.song_unet import SongUNet
from fdistill.networks.stock_dit import StockDiT
from fdistill.networks.stock_unet import StockUNet
from fdistill.networks.two_experts import TwoExperts

__all__ = [
    "MLP",
    "DiffusersUNet",
    "EDM2UNet",
    "Encoding",
    "GaussianMixture",
    "Network",
    "SmallUNet",
    "SongUNet",
    "StockDiT",
    "StockUNet",
    "TwoExperts",
    "train_without_dropout",
]
