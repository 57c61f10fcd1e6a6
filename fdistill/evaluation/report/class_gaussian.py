"""One Gaussian per class: the simplest generator with the right labels, which every student has to beat."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fdistill.data.batches import InMemorySplit
from fdistill.evaluation.metrics.blocks import checked_labels

MOST_NUMBERS = 2**20  # of a class that its Gaussian is fitted to
LEAST = 1000  # samples, however many numbers each has


def per_class_gaussian(
    x: Tensor | InMemorySplit,
    labels: Tensor | None,
    num_classes: int | None,
    generator: torch.Generator | None = None,
) -> Callable[..., Tensor]:
    """Return `sample(labels, generator)` that draws [n, ...] from Gaussians fitted to `x` [N, ...] per class.

    Mean and full unbiased covariance of each class are met exactly, before images (samples [C, H, W]) are clamped to
    [-1, 1] as every image here is; points are not clamped. A class of one sample repeats it. Large classes are
    represented by `most_fitted` of their samples, chosen evenly.

    Args:
        x: training samples [N, ...]; of a split, `data.train_samples`, one class at a time is read.
        labels: their classes [N] in [0, num_classes), or None for one Gaussian over all.
        num_classes: how many classes `labels` may name; ignored without labels.
        generator: drawn from when `sample` is called without one; on the CPU.

    `sample(labels, generator=None)`: the class of each sample wanted [n]; without classes only its length counts.
    It raises ValueError for a class that has no training sample.
    """
    shape = tuple(x.shape[1:] if isinstance(x, Tensor) else x.sample_shape)
    if labels is None:
        groups = [torch.arange(len(x))]
    else:
        labels = checked_labels(labels, num_classes or 1).cpu()
        groups = [(labels == c).nonzero().flatten() for c in range(num_classes or 1)]
    most = most_fitted(shape)
    groups = [g if len(g) <= most else g[torch.linspace(0, len(g) - 1, most).long()] for g in groups]
    fallback = generator

    def sample(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        wanted = labels.cpu() if len(groups) > 1 else torch.zeros(len(labels), dtype=torch.int64)
        wanted = checked_labels(wanted, len(groups))
        drawn = torch.empty(len(wanted), math.prod(shape), dtype=x.dtype if isinstance(x, Tensor) else torch.float32)
        for c in wanted.unique().tolist():
            chosen = wanted == c
            rows = x[groups[c].to(x.device)] if isinstance(x, Tensor) else x.rows(groups[c]).x
            group = rows.detach().flatten(1).double().cpu()
            drawn[chosen] = _draw(group, int(chosen.sum()), generator or fallback, name=c).to(drawn.dtype)
        drawn = drawn.view(len(wanted), *shape)
        drawn = drawn.clamp_(-1, 1) if len(shape) == 3 else drawn
        return drawn.to(x.device) if isinstance(x, Tensor) else drawn

    return sample


def most_fitted(sample_shape: Sequence[int]) -> int:
    """Samples of a class that its Gaussian is fitted to at most: 2^20 numbers, but no fewer than 1,000 samples."""
    return max(LEAST, MOST_NUMBERS // math.prod(sample_shape))


def _draw(group: Tensor, count: int, generator: torch.Generator | None, name: int) -> Tensor:
    """Return `count` samples [count, d] of the Gaussian with the mean and covariance of `group` [n, d].

    A random mixture w of the centred rows has covariance sum (x - m)(x - m)^T / (n - 1) when w ~ N(0, I / (n - 1)):
    no d x d matrix, no factorisation, and a singular covariance needs no care.
    """
    if len(group) == 0:
        raise ValueError(f"every wanted class has training samples: class {name} has none; drop it from the labels")
    mean = group.mean(0)
    if len(group) == 1:
        return mean.expand(count, -1)
    mixture = torch.randn(count, len(group), generator=generator, dtype=torch.float64)
    return mean + mixture @ (group - mean) / (len(group) - 1) ** 0.5
