"""Vendi score: the effective number of different samples under a kernel (arXiv 2210.02410)."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import blocks, check_features, checked_labels
from fdistill.evaluation.metrics.random_fourier import fourier_frequencies, waves
from fdistill.evaluation.metrics.vendi_kernel import (
    KernelName,
    add_gram,
    check_bandwidth,
    check_centre,
    checked_kernel,
)
from fdistill.evaluation.metrics.vendi_spectrum import (
    check_order,
    check_side,
    collision,
    collision_of,
    hill_number,
    shares,
    spectrum_of,
)


def vendi_score(
    features: Tensor,
    order: float = 1.0,
    kernel: KernelName = "cosine",
    bandwidth: float | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the score, a float64 scalar in [1, n], under the cosine in [1, min(n, d)]; 1 for equal samples.

    With lambda the eigenvalues of K / n, K the kernel of all pairs: `(sum lambda^q)^{1 / (1 - q)}`, at q = 1
    `exp(-sum lambda ln lambda)`, at q = inf `1 / max lambda` (arXiv 2310.12952 for orders other than 1). Copies of all
    samples change nothing. More samples raise it, the Gaussian's without end: compare scores at equal n.

    Args:
        features: [n, d], n >= 1; one sample scores 1.
        order: q in (0, inf]. Small orders count rare samples, inf only the most common direction. Order 2 needs no
            eigenvalues and takes any n, see `rke`.
        kernel: "cosine", or "rbf" for `exp(-|x - y|^2 / (2 bandwidth^2))`.
        bandwidth: in (0, inf), of "rbf" alone.
        centre: [d], subtracted first, best the mean of the reference: the cosine score of features that are all
            positive stays near 1 whatever the samples. The Gaussian does not depend on it. None for the origin.

    Raises:
        ValueError: for a wrong shape, no samples, a NaN, a row at the centre under the cosine, an order outside
            (0, inf], a bandwidth that does not fit the kernel; where order is not 2, for n > 10,000 under "rbf" and
            min(n, d) > 10,000 under "cosine".
    """
    check_order(order)
    if order == 2:
        return rke(features, kernel, bandwidth, centre)
    return hill_number(spectrum_of(features, checked_kernel(features, kernel, bandwidth, centre)), order)


def rke(
    features: Tensor,
    kernel: KernelName = "cosine",
    bandwidth: float | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the score of order 2, `1 / |K / n|_F^2` (RKE; Jalali, Li and Farnia 2023), by a sum over pairs, for any n.

    Arguments and errors are those of `vendi_score`; there is no limit of size. Time is O(n d min(n, d)), under "rbf"
    O(n^2 d), and no matrix of all pairs is held.
    """
    return 1 / collision_of(features, checked_kernel(features, kernel, bandwidth, centre))


def per_class_vendi_score(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    order: float = 1.0,
    kernel: KernelName = "cosine",
    bandwidth: float | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the mean over classes of the score of each class' samples, a float64 scalar: variety inside classes.

    Every class with a sample weighs the same; one with n_c samples scores at most n_c, so one sample counts 1. Empty
    classes are left out: that they are missing is what mode coverage says.

    Args:
        features: [n, d], n >= 1.
        labels: int [n], each in [0, num_classes).
        num_classes: how many classes there are.
        order, kernel, bandwidth, centre: as in `vendi_score`.

    Raises:
        ValueError: as `vendi_score`, and for labels of another shape or outside the range.
    """
    check_features("features", features)
    labels = checked_labels(labels, num_classes)
    if len(labels) != len(features):
        raise ValueError(
            f"labels hold one class per sample: expected {len(features)}, got {len(labels)}; pass those of the samples"
        )
    parts = (features[labels == label] for label in labels.unique())
    return torch.stack([vendi_score(part, order, kernel, bandwidth, centre) for part in parts]).mean()


class VendiScore(FeatureMetric):
    """`vendi_score` of the generated samples; with `relative`, divided by that of equally many real ones.

    The relative score is 1 where generated samples are as varied as real ones and falls as they collapse. Without it
    real samples are checked and left aside.

    The cosine kernel and the Gaussian one by random Fourier features stream: a rank holds the sum of `u u^T` in
    float64, 8 d^2 bytes a side (of the features, or of 2 random_features), however many samples there are. The exact
    Gaussian kernel keeps all features, in the type they came in.

    Args:
        order: q in (0, inf].
        kernel: "cosine" or "rbf".
        bandwidth: of "rbf", in (0, inf).
        centre: [d], subtracted first, best the mean of the reference; see `vendi_score`.
        relative: whether `compute` returns the ratio, which needs equally many samples on both sides: up to n = d and
            beyond, scores grow with n.
        random_features: number of frequencies for "rbf", see `fourier_features` for the bias; None for the exact one.
        seed: of the frequencies, which are the same on every rank.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    centre: Tensor | None

    def __init__(
        self,
        order: float = 1.0,
        kernel: KernelName = "cosine",
        bandwidth: float | None = None,
        centre: Tensor | None = None,
        relative: bool = False,
        random_features: int | None = None,
        seed: int = 0,
        reset_real_features: bool = True,
    ) -> None:
        super().__init__(reset_real_features)
        check_order(order)
        check_bandwidth(kernel, bandwidth)
        if random_features is not None and (kernel != "rbf" or random_features < 1):
            raise ValueError(
                f"random_features is a positive number for the rbf kernel: got {random_features} for {kernel!r}; "
                "leave it None"
            )
        self.order, self.kernel, self.bandwidth, self.relative = order, kernel, bandwidth, relative
        self.random_features, self.seed = random_features, seed
        self.register_buffer("centre", centre, persistent=False)
        self.alone, self.least = not relative, (1, int(relative))
        self.sums = kernel == "cosine" or random_features is not None

    def check(self, name: str, features: Tensor) -> None:
        super().check(name, features)
        check_centre(self.centre, features.shape[1])

    def kept(self, rows: list[Tensor], features: Tensor) -> list[Tensor]:
        if not self.sums:
            return super().kept(rows, features)
        side = features.shape[1] if self.random_features is None else 2 * self.random_features
        if self.order != 2:
            check_side(side)
        total = torch.zeros(1 + side**2, dtype=torch.float64, device=features.device)
        for block in self._directions(features):
            add_gram(total[1:].view(side, side), block)
        total[0] = len(features)
        for row in rows:
            total += row[0]
        return [total[None]]

    def measure(self, generated: Tensor, real: Tensor) -> Tensor:
        sides = (generated, real)[: 1 + self.relative]
        counts = [int(rows[:, 0].sum()) if self.sums else len(rows) for rows in sides]
        if len(set(counts)) > 1:
            raise ValueError(
                f"a Vendi ratio compares equally many samples, for scores grow with n: expected {counts[1]} generated "
                f"ones, as many as real, got {counts[0]}; draw as many"
            )
        scores = [self._score(rows) for rows in sides]
        return scores[0] / scores[1] if self.relative else scores[0]

    def _score(self, rows: Tensor) -> Tensor:
        if not self.sums:
            return vendi_score(rows, self.order, self.kernel, self.bandwidth, self.centre)
        side = math.isqrt(rows.shape[1] - 1)
        gram = rows.sum(0)[1:].view(side, side)
        return 1 / collision(gram) if self.order == 2 else hill_number(shares(gram), self.order)

    def _directions(self, features: Tensor) -> Iterator[Tensor]:
        """Rows of length one whose products are the kernel, a block at a time."""
        if self.random_features is None:
            return checked_kernel(features, "cosine", None, self.centre).rows(features)
        frequencies = fourier_frequencies(
            features.shape[1],
            cast(float, self.bandwidth),  # the two go together
            self.random_features,
            generator_for(self.seed, features.shape[1]),
        ).to(features.device)  # drawn on the CPU: the same on every kind of device
        return (waves(block, frequencies) for block in blocks(features))


class VendiScoreAndRatio(FeatureMetric):
    """{"vendi_score", "vendi_ratio"} under the cosine: the score, and the same over the reference's.

    From the smaller of the matrices n x n and d x d, where the stream of `VendiScore` needs that of d x d.
    """

    gives = ("vendi_score", "vendi_ratio")

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        score = vendi_score(generated)
        return dict(zip(self.gives, (score, score / vendi_score(real)), strict=True))
