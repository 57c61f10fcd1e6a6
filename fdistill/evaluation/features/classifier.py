"""The penultimate features of a small classifier trained on the real training images, and the classes it reads."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.features.base import FeatureExtractor
from fdistill.evaluation.features.pixels import PixelFeatures
from fdistill.evaluation.metrics.classifier import BATCH_SIZE, FEATURES, ConvClassifier, train_classifier

IMAGES_SEEN = 200_000  # in training; about three seconds at 8 x 8
EPOCHS = (5, 100)  # at least and at most
SMALLEST = 8  # pixels along an image that it reads
MOST_STEPS = 3_910  # five epochs of 50,000 images; more images make no longer training


class ClassifierFeatures(FeatureExtractor):
    """32 features of labelled square images of at least 8 x 8.

    Args:
        epochs: of the classifier's training, >= 1; as many as show it 200,000 images, between 5 and 100 but at most
            3,910 steps of 64 images, where not given. Features of classifiers trained for different times are not
            comparable.

    Raises:
        ValueError: if epochs is below 1; and by `prepare` for images without labels, not square or below 8 x 8.
    """

    def __init__(self, epochs: int | None = None) -> None:
        super().__init__()
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs of the classifier's training: expected >= 1, got {epochs}")
        self.epochs = epochs
        self.classifier: Any = None  # a ConvClassifier once it is prepared
        self._trained = ""

    @property
    def what(self) -> str:
        return f"{FEATURES} penultimate features of a small classifier trained {self._trained}"

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        if labels is None or not num_classes:
            raise ValueError(
                "ClassifierFeatures learns the classes of real images: expected labels and num_classes, got none; "
                "use PixelFeatures or a pretrained extractor for unlabelled data"
            )
        steps = self._told(x, seed)
        with torch.inference_mode(False):  # in which a trainer may be, and in which nothing learns
            self.classifier = train_classifier(x, labels, num_classes, seed, steps=steps, device=self.device)

    def learned(self) -> dict[str, Tensor]:
        return {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}

    def fit_again(
        self, learned: Mapping[str, Tensor], x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int
    ) -> None:
        self._told(x, seed)
        with torch.inference_mode(False), torch.device("meta"):
            classes = cast(int, num_classes)  # as when it was trained
            self.classifier = ConvClassifier(x.sample_shape[0], classes, x.sample_shape[1]).eval()
        weights = {name.removeprefix("classifier."): value.to(self.device) for name, value in learned.items()}
        self.classifier.load_state_dict(weights, assign=True)

    def _told(self, x: InMemorySplit, seed: int) -> int:
        """The steps of a training, which the features' name tells."""
        low, high = EPOCHS
        epochs = self.epochs or min(high, max(low, IMAGES_SEEN // len(x)))
        steps, duration = epochs * -(-len(x) // BATCH_SIZE), f"{epochs} epochs"
        if self.epochs is None and steps > MOST_STEPS:
            steps, duration = MOST_STEPS, f"{MOST_STEPS:,} steps"
        self._trained = f"for {duration} on {len(x):,} real images with seed {seed}"
        return steps

    def raw_features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor | None:
        """The class int64 [n] of largest logit, on the extractor's device, of `features` [n, 32].

        Raises:
            ValueError: before `prepare`, or for anything but features of this extractor.
        """
        self._require_prepared()
        if features.ndim != 2 or features.shape[1] != FEATURES:
            raise ValueError(
                f"classes are read from this extractor's features: expected [n, {FEATURES}], "
                f"got {list(features.shape)}; extract them first"
            )
        raw = features.float().to(self.device) * self.scale + self.mean
        return torch.cat([self.classifier.head(F.silu(part)).argmax(1) for part in raw.split(self.batch_size)])


def default_extractor(sample_shape: Sequence[int], num_classes: int | None) -> FeatureExtractor:
    """A classifier's features for labelled square images of at least 8 x 8, the values themselves for all else.

    Args:
        sample_shape: of one sample, (C, H, W) for images.
        num_classes: of the data; below 2 or None where it has no labels to learn.
    """
    square = len(sample_shape) == 3 and sample_shape[1] == sample_shape[2] >= SMALLEST
    return ClassifierFeatures() if square and (num_classes or 0) > 1 else PixelFeatures()
