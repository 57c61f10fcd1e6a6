"""Where light and dark lie in an image, patch by patch: equal for images that differ in colour or contrast alone."""

from torch import Tensor
from torch.nn import functional as F

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.features.base import FeatureExtractor

SIDE = 32  # pixels along an image, to which larger ones are averaged down
PATCH, STRIDE = 4, 2
FLAT = 0.05  # root mean square of a patch of images in [-1, 1], below which it counts as flat rather than as structure


class PatchFeatures(FeatureExtractor):
    """Overlapping patches of 4 x 4 of the grey image, each without its mean and of length one.

    The cosine of two samples is the mean cosine of their patches in the same place. So it sees where strokes and edges
    lie, and neither brightness, colour nor contrast: samples that differ in those alone are the same sample here.
    """

    @property
    def what(self) -> str:
        return f"grey patches of {PATCH} x {PATCH} without mean and contrast"

    def fit(self, x: InMemorySplit, labels: Tensor | None, num_classes: int | None, seed: int) -> None:
        if not reads_patches(x.sample_shape):
            raise ValueError(
                f"PatchFeatures reads images of at least {PATCH} x {PATCH}: got samples {list(x.sample_shape)}"
            )

    def raw_features(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)
        if max(grey.shape[2:]) > SIDE:
            grey = F.adaptive_avg_pool2d(grey, SIDE)
        patches = F.unfold(grey, PATCH, stride=STRIDE).transpose(1, 2)  # [b, places, 16]
        patches = patches - patches.mean(2, keepdim=True)
        return (patches / (patches.square().mean(2, keepdim=True) + FLAT**2).sqrt()).flatten(1)


def reads_patches(sample_shape: tuple[int, ...]) -> bool:
    """Whether samples are images that have patches."""
    return len(sample_shape) == 3 and min(sample_shape[1:]) >= PATCH
