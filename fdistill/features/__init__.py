"""Where samples are compared: extractors that turn samples into features, fitted to the real training samples."""

from fdistill.features.base import FeatureExtractor, compared_rows
from fdistill.features.cache import FeatureCache
from fdistill.features.classifier import ClassifierFeatures
from fdistill.features.default import default_extractor
from fdistill.features.module import ModuleFeatures
from fdistill.features.pixels import PixelFeatures
from fdistill.features.pretrained import InceptionFeatures, OpenClipFeatures, TimmFeatures

__all__ = [
    "ClassifierFeatures",
    "FeatureCache",
    "FeatureExtractor",
    "InceptionFeatures",
    "ModuleFeatures",
    "OpenClipFeatures",
    "PixelFeatures",
    "TimmFeatures",
    "compared_rows",
    "default_extractor",
]
