"""Stock text-to-image networks of diffusers: one class around all of them, an adapter for each family."""

from fdistill.models.networks.text.families import FAMILIES, Family, StableDiffusion, family_of
from fdistill.models.networks.text.family import Encoded
from fdistill.models.networks.text.network import TextToImageNetwork

__all__ = ["FAMILIES", "Encoded", "Family", "StableDiffusion", "TextToImageNetwork", "family_of"]
