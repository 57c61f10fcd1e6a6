"""Which extractor compares samples where nobody has chosen one."""

from collections.abc import Sequence

from fdistill.evaluation.features.base import FeatureExtractor
from fdistill.evaluation.features.classifier import ClassifierFeatures
from fdistill.evaluation.features.pixels import PixelFeatures

SMALLEST = 8  # pixels along an image that a small classifier reads


def default_extractor(sample_shape: Sequence[int], num_classes: int | None) -> FeatureExtractor:
    """A classifier's features for labelled square images of at least 8 x 8, the values themselves for all else.

    Args:
        sample_shape: of one sample, (C, H, W) for images.
        num_classes: of the data; below 2 or None where it has no labels to learn.
    """
    square = len(sample_shape) == 3 and sample_shape[1] == sample_shape[2] >= SMALLEST
    return ClassifierFeatures() if square and (num_classes or 0) > 1 else PixelFeatures()
