"""Raw networks F: each sees a scaled sample, a noise input and labels, and knows nothing of noise schedules."""

from fdistill.models.networks.base import Encoding, Network, train_without_dropout
from fdistill.models.networks.diffusers_unet import DiffusersUNet
from fdistill.models.networks.edm2_unet import EDM2UNet
from fdistill.models.networks.gaussian_mixture import GaussianMixture
from fdistill.models.networks.generator import Generator
from fdistill.models.networks.mlp import MLP
from fdistill.models.networks.small_unet import SmallUNet
from fdistill.models.networks.song_unet import SongUNet
from fdistill.models.networks.stock_dit import StockDiT
from fdistill.models.networks.stock_unet import StockUNet
from fdistill.models.networks.text import TextToImageNetwork, WordUNet
from fdistill.models.networks.two_experts import TwoExperts

__all__ = [
    "MLP",
    "DiffusersUNet",
    "EDM2UNet",
    "Encoding",
    "GaussianMixture",
    "Generator",
    "Network",
    "SmallUNet",
    "SongUNet",
    "StockDiT",
    "StockUNet",
    "TextToImageNetwork",
    "TwoExperts",
    "WordUNet",
    "train_without_dropout",
]
