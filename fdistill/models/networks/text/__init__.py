"""Stock text-to-image networks of diffusers: one class around all of them, an adapter for each family."""

from fdistill.models.networks.text.families import FAMILIES, Family, StableDiffusion, family_of
from fdistill.models.networks.text.family import PromptOutputs
from fdistill.models.networks.text.network import TextToImageNetwork
from fdistill.models.networks.text.word_unet import WordUNet

__all__ = [
    "FAMILIES",
    "Family",
    "PromptOutputs",
    "StableDiffusion",
    "TextToImageNetwork",
    "WordUNet",
    "family_of",
]
