"""The space in which samples are compared: features of a classifier of the real images, or the values themselves."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fdistill.metrics import train_classifier

CHUNK = 1024  # samples in the classifier at once
MAX_VALUES = 1024  # a covariance of more dimensions than this takes minutes
IMAGES_SEEN = 200_000  # by the classifier in training; about three seconds at 8 x 8


class FeatureSpace:
    """Features of samples, centred and scaled so that the real training samples have mean 0 and mean variance 1.

    With labels and square images of at least 8 x 8 they are the 32 penultimate features of a small classifier trained
    here; otherwise the flattened values, large images averaged down first. One scale makes distances of different
    classifiers comparable, and the centring is what the Vendi score needs; nothing else sees either.

    Args:
        x: real training samples [N, ...], images in [-1, 1].
        labels: their classes [N] in [0, num_classes), or None.
        num_classes: at least 2 to train a classifier; 0 or None for unlabelled samples.
        seed: of the classifier's training.

    Attributes:
        name: a sentence for the report that says what the features are.

    Raises:
        ValueError: for fewer than two samples, a NaN, or samples that are all equal.
    """

    def __init__(self, x: Tensor, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        if x.ndim < 2 or len(x) < 2:
            raise ValueError(f"a feature space needs real samples [N, ...] with N >= 2, got {list(x.shape)}")
        if not x.isfinite().all():
            raise ValueError("a feature space needs finite samples: got a NaN or an infinity; check the data")
        square = x.ndim == 4 and x.shape[2] == x.shape[3] >= 8
        labelled = labels is not None and num_classes is not None and num_classes > 1
        self._classifier = None
        self._device = x.device
        self._shape = x.shape[1:]
        self._resolution = None
        if square and labelled:
            epochs = min(100, max(5, IMAGES_SEEN // len(x)))
            self._classifier = train_classifier(x, labels, num_classes, seed, epochs=epochs)
            what = f"32 penultimate features of a small classifier trained on {len(x):,} real images with seed {seed}"
        elif x.ndim == 4 and x[0].numel() > MAX_VALUES:
            self._resolution = max(1, int((MAX_VALUES / x.shape[1]) ** 0.5))
            what = f"pixels averaged down to {self._resolution} x {self._resolution}"
        else:
            what = "pixel values" if x.ndim == 4 else f"all {x[0].numel()} coordinates"
        self.name = f"{what}, scaled to unit mean variance on the training set"
        raw = self._raw(x)
        self._mean = raw.mean(0)
        self._std = raw.var(0).mean().sqrt()
        if not self._std > 0:
            raise ValueError(f"a feature space needs samples that differ: got {len(x)} equal ones; check the data")

    def features(self, x: Tensor) -> Tensor:
        """Return the features [n, d] of samples [n, ...], float64 on the CPU."""
        return (self._raw(x) - self._mean) / self._std

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor | None:
        """Return the classifier's label [n] of each sample, int64 on the CPU, or None where there is no classifier."""
        if self._classifier is None:
            return None
        return torch.cat([self._classifier(part.float().to(self._device)).argmax(1).cpu() for part in x.split(CHUNK)])

    @torch.no_grad()
    def _raw(self, x: Tensor) -> Tensor:
        """Return the features before centring [n, d], float64 on the CPU."""
        if x.shape[1:] != self._shape or len(x) == 0:
            raise ValueError(
                f"samples have the shape of the training set: expected [n, {', '.join(map(str, self._shape))}] "
                f"with n >= 1, got {list(x.shape)}"
            )
        if self._classifier is not None:
            parts = [self._classifier.features(part.float().to(self._device)).cpu() for part in x.split(CHUNK)]
            return torch.cat(parts).double()
        if self._resolution is not None:
            x = F.adaptive_avg_pool2d(x.float(), self._resolution)
        return x.flatten(1).cpu().double()
