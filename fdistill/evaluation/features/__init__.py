"""Where samples are compared: extractors that turn samples into features, fitted to the real training samples."""

from fdistill.evaluation.features.base import FeatureExtractor, compared_rows
from fdistill.evaluation.features.cache import FeatureCache
from fdistill.evaluation.features.captions import CaptionFeatures
from fdistill.evaluation.features.classifier import ClassifierFeatures, default_extractor
from fdistill.evaluation.features.module import ModuleFeatures
from fdistill.evaluation.features.patches import PatchFeatures, reads_patches
from fdistill.evaluation.features.pixels import PixelFeatures
from fdistill.evaluation.features.pretrained import InceptionFeatures, OpenClipFeatures, TimmFeatures

__all__ = [
    "CaptionFeatures",
    "ClassifierFeatures",
    "FeatureCache",
    "FeatureExtractor",
    "InceptionFeatures",
    "ModuleFeatures",
    "OpenClipFeatures",
    "PatchFeatures",
    "PixelFeatures",
    "TimmFeatures",
    "compared_rows",
    "default_extractor",
    "reads_patches",
]
