"""One Gaussian per class: the simplest generator with the right labels, which every student has to beat."""

from collections.abc import Callable

import torch
from torch import Tensor

from fdistill.metrics.checks import checked_labels


def per_class_gaussian(
    x: Tensor, labels: Tensor | None, num_classes: int | None, generator: torch.Generator | None = None
) -> Callable[..., Tensor]:
    """Return `sample(labels, generator)` that draws [n, ...] from Gaussians fitted to `x` [N, ...] per class.

    Mean and full unbiased covariance of each class are met exactly, before images (samples [C, H, W]) are clamped to
    [-1, 1] as every image here is; points are not clamped. A class of one sample repeats it.

    Args:
        x: training samples [N, ...].
        labels: their classes [N] in [0, num_classes), or None for one Gaussian over all.
        num_classes: how many classes `labels` may name; ignored without labels.
        generator: drawn from when `sample` is called without one; on the CPU.

    `sample(labels, generator=None)`: the class of each sample wanted [n]; without classes only its length counts.
    It raises ValueError for a class that has no training sample.
    """
    if labels is None:
        groups = [x]
    else:
        labels = checked_labels(labels, num_classes or 1).to(x.device)
        groups = [x[labels == c] for c in range(num_classes or 1)]
    groups = [group.detach().flatten(1).double().cpu() for group in groups]
    fallback = generator

    def sample(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        wanted = labels.cpu() if len(groups) > 1 else torch.zeros(len(labels), dtype=torch.int64)
        wanted = checked_labels(wanted, len(groups))
        drawn = torch.empty(len(wanted), x[0].numel(), dtype=torch.float64)
        for c in wanted.unique().tolist():
            chosen = wanted == c
            drawn[chosen] = _draw(groups[c], int(chosen.sum()), generator or fallback, name=c)
        drawn = drawn.to(x.dtype).view(len(wanted), *x.shape[1:])
        return (drawn.clamp(-1, 1) if x.ndim == 4 else drawn).to(x.device)

    return sample


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
