"""Data modules with an endless resumable stream, encoded latents, a teacher's pairs. It imports io and below."""

from fdistill.data.base import Batch, GenerativeDataModule, remembered_data, require_data
from fdistill.data.batch_stream import EndlessBatchSampler
from fdistill.data.batches import InMemorySplit, ReadSplit, Split
from fdistill.data.captioned_digits import CaptionedDigits
from fdistill.data.chequerboard import Chequerboard
from fdistill.data.coloured_digits import ColouredDigits
from fdistill.data.digits import Digits
from fdistill.data.idx_folder import IdxFolder
from fdistill.data.image_folder import ImageFolder
from fdistill.data.latent_folder import DecodedLatents, LatentFolder
from fdistill.data.latents_only import LatentsOnly
from fdistill.data.mixtures import (
    GaussianMixtureData,
    MixtureParameters,
    forty_modes,
    grid,
    nearest_mode,
    ring,
    sample_mixture,
)
from fdistill.data.prompts import PromptedLatents, Prompts
from fdistill.data.splits import stratified_split
from fdistill.data.stacked_digits import StackedDigits

__all__ = [
    "Batch",
    "CaptionedDigits",
    "Chequerboard",
    "ColouredDigits",
    "DecodedLatents",
    "Digits",
    "EndlessBatchSampler",
    "GaussianMixtureData",
    "GenerativeDataModule",
    "IdxFolder",
    "ImageFolder",
    "InMemorySplit",
    "LatentFolder",
    "LatentsOnly",
    "MixtureParameters",
    "PromptedLatents",
    "Prompts",
    "ReadSplit",
    "Split",
    "StackedDigits",
    "forty_modes",
    "grid",
    "nearest_mode",
    "remembered_data",
    "require_data",
    "ring",
    "sample_mixture",
    "stratified_split",
]
