"""Inception score and KID with the draws of torch-fidelity, CLIP score as torchmetrics has it.

Both libraries hold all logits and features in memory, and read them with networks of their own.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fdistill.evaluation.metrics import kernel_distance

SPLITS = 10
SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 2020  # torch-fidelity's, so that the same images in the same order give the same numbers


class Spread(NamedTuple):
    """Mean and standard deviation (divisor: their number) over splits or subsets."""

    mean: float
    std: float


class InceptionScore:
    """exp of the mean KL(p(class | image) || p(class)), over ten random splits (arXiv 1606.03498).

    Logits stream: a split holds the sum of its probabilities and of their negative entropies.

    Args:
        n: images that will come, >= 10 for a score.
    """

    def __init__(self, n: int) -> None:
        place = torch.from_numpy(np.random.RandomState(SEED).permutation(n)).argsort()
        self._split = torch.bucketize(place, torch.arange(1, SPLITS + 1) * n // SPLITS, right=True)
        self._seen = 0
        self._probabilities: Tensor | float = 0.0  # [splits, classes]
        self._entropies = torch.zeros(SPLITS, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """The next images' logits [b, classes]."""
        split = F.one_hot(self._split[self._seen : self._seen + len(logits)], SPLITS).double()
        log_p = logits.double().log_softmax(1)
        self._probabilities = self._probabilities + split.T @ log_p.exp()
        self._entropies += split.T @ (log_p.exp() * log_p).sum(1)
        self._seen += len(logits)

    def compute(self) -> Spread:
        """The score."""
        counts = self._split.bincount(minlength=SPLITS)
        marginal = self._probabilities / counts[:, None]
        return _spread((self._entropies / counts - torch.special.xlogy(marginal, marginal).sum(1)).exp())


def kid(generated: np.ndarray, real: np.ndarray) -> Spread:
    """Kernel distances of 100 random subsets of 1000, or of all where a side has fewer (arXiv 1801.01401).

    Args:
        generated: Inception's features [n, d], n >= 3; may lie in a file.
        real: the same [m, d], m >= 3.
    """
    draws, size = np.random.RandomState(SEED), min(SUBSET_SIZE, len(generated), len(real))
    values = []
    for _ in range(SUBSETS):
        chosen = (side[draws.choice(len(side), size, replace=False)] for side in (generated, real))
        x, y = (torch.from_numpy(side) for side in chosen)
        values.append(kernel_distance(x, y).distance)
    return _spread(torch.stack(values))


class ClipScore:
    """100 times the mean cosine of an image and its prompt, at least 0 (arXiv 2104.08718 without its factor 2.5).

    Args:
        prompts: embeddings [p, d].
    """

    def __init__(self, prompts: Tensor) -> None:
        self._prompts = F.normalize(prompts.double().cpu(), dim=1)
        self._sum, self._seen = 0.0, 0

    def add(self, images: Tensor, prompts: Tensor) -> None:
        """Embeddings [b, d] of the next images, and the number of the prompt of each [b]."""
        self._sum += float((F.normalize(images.double(), dim=1) * self._prompts[prompts.cpu()]).sum())
        self._seen += len(images)

    def compute(self) -> float:
        """The score, in [0, 100]."""
        return max(100 * self._sum / self._seen, 0.0)


def _spread(values: Tensor) -> Spread:
    return Spread(float(values.mean()), float(values.std(correction=0)))
