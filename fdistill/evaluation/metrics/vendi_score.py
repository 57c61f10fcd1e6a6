"""Vendi score: the effective number of different samples under a kernel (arXiv 2210.02410)."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import blocks, check_features, check_width
from fdistill.evaluation.metrics.checks import checked_labels
from fdistill.evaluation.metrics.random_fourier import fourier_features, fourier_frequencies, waves
from fdistill.evaluation.metrics.vendi_kernel import (
    Kernel,
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
    labels = _labels_of(features, labels, num_classes)
    parts = (features[labels == label] for label in labels.unique())
    return torch.stack([vendi_score(part, order, kernel, bandwidth, centre) for part in parts]).mean()


def _labels_of(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    labels = checked_labels(labels, num_classes)
    if len(labels) != len(features):
        raise ValueError(
            f"labels hold one class per sample: expected {len(features)}, got {len(labels)}; pass those of the samples"
        )
    return labels


class VendiScore(FeatureMetric):
    """`vendi_score` of the generated samples; with `relative`, divided by that of equally many real ones.

    The relative score is 1 where generated samples are as varied as real ones and falls as they collapse. Without it
    real samples are checked and left aside.

    The cosine kernel and the Gaussian one by random Fourier features stream: a rank holds the sum of `u u^T` in
    float64, 8 d^2 bytes a side (of the features, or of 2 random_features), however many samples there are. The exact
    Gaussian kernel and the mean over classes keep all features, in the type they came in.

    Args:
        order: q in (0, inf].
        kernel: "cosine" or "rbf".
        bandwidth: of "rbf", in (0, inf).
        centre: [d], subtracted first, best the mean of the reference; see `vendi_score`.
        relative: whether `compute` returns the ratio, which needs equally many samples on both sides (in every class
            where there are classes): up to n = d and beyond, scores grow with n.
        random_features: number of frequencies for "rbf", see `fourier_features` for the bias; None for the exact one.
        num_classes: for `per_class_vendi_score`; `update` then takes labels. None for one score of all samples.
        seed: of the frequencies, which are the same on every rank.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    real_states = ("real", "real_labels")

    centre: Tensor | None

    def __init__(
        self,
        order: float = 1.0,
        kernel: KernelName = "cosine",
        bandwidth: float | None = None,
        centre: Tensor | None = None,
        relative: bool = False,
        random_features: int | None = None,
        num_classes: int | None = None,
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
        self.random_features, self.num_classes, self.seed = random_features, num_classes, seed
        self.register_buffer("centre", centre, persistent=False)
        self._width: int | None = None
        for name in ("generated", "real", "generated_labels", "real_labels"):
            self.add_rows(name)

    @property
    def label(self) -> str:
        """What it is logged as: vendi_ratio where it is relative."""
        return "vendi_ratio" if self.relative else super().label

    def update(self, features: Tensor, real: bool, labels: Tensor | None = None) -> None:
        """Add features [n, d] of real samples, or of generated ones, and with num_classes their labels, int [n].

        Raises:
            ValueError: for a wrong shape, a NaN or an infinity, another d than before, a row at the centre under the
                cosine, labels without num_classes, or none with it.
        """
        name = "real" if real else "generated"
        check_features(f"{name} features", features)
        if self._width is not None:
            check_width(self._width, features)
        check_centre(self.centre, features.shape[1])
        labels = self._checked_labels(features, labels)
        if self._streams and (self.relative or not real):
            setattr(self, name, [self._added(self.rows(name), features.to(self.device))])
        elif self.relative or not real:
            getattr(self, name).append(features.detach().to(self.device))
            if labels is not None:
                getattr(self, f"{name}_labels").append(labels.to(self.device))
        self._width = features.shape[1]

    def compute(self) -> Tensor:
        """The score or the ratio of all samples so far, of all ranks: a float64 scalar.

        Raises:
            ValueError: without samples, or, where it is relative, for different numbers of them.
        """
        self.need("generated", self._count("generated"))
        if not self.relative:
            return self._score("generated")
        self.need("real", self._count("real"))
        self._check_equal_counts()
        return self._score("generated") / self._score("real")

    def reset(self) -> None:
        """Forget all samples, or only the generated ones where reset_real_features is False."""
        super().reset()
        if self.reset_real_features:
            self._width = None

    @property
    def _streams(self) -> bool:
        return self.num_classes is None and (self.kernel == "cosine" or self.random_features is not None)

    def _added(self, kept: Tensor, features: Tensor) -> Tensor:
        """Return a row [1, 1 + side^2], a count and a Gram matrix: the sum of those kept and of that of the features.

        `kept` are a copy of the state and may be written to.
        """
        if self.random_features is None:
            rows = Kernel(None, None if self.centre is None else self.centre.double()).rows(features)
        else:
            frequencies = self._frequencies(features)
            rows = (waves(block, frequencies) for block in blocks(features))
        side = features.shape[1] if self.random_features is None else 2 * self.random_features
        if self.order != 2:
            check_side(side)
        if not len(kept):
            kept = torch.zeros(1, 1 + side**2, dtype=torch.float64, device=features.device)
        row = kept[0] if len(kept) == 1 else kept.sum(0)
        row[0] += len(features)
        for block in rows:
            add_gram(row[1:].view(side, side), block)
        return row[None]

    def _score(self, name: str) -> Tensor:
        kept = self.rows(name)
        if self._streams:
            side = math.isqrt(kept.shape[1] - 1)
            gram = kept.sum(0)[1:].view(side, side)
            return 1 / collision(gram) if self.order == 2 else hill_number(shares(gram), self.order)
        if self.random_features is None:
            settings: tuple[Any, ...] = (self.order, self.kernel, self.bandwidth, self.centre)
        else:
            kept, settings = fourier_features(kept, self._frequencies(kept)), (self.order,)
        if self.num_classes is None:
            return vendi_score(kept, *settings)
        return per_class_vendi_score(kept, self.rows(f"{name}_labels"), self.num_classes, *settings)

    def _frequencies(self, features: Tensor) -> Tensor:
        drawn = fourier_frequencies(
            features.shape[1],
            cast(float, self.bandwidth),  # the two go together
            cast(int, self.random_features),
            generator_for(self.seed, features.shape[1]),
        )
        return drawn.to(features.device)  # drawn on the CPU: the same on every kind of device

    def _count(self, name: str) -> int:
        kept = self.rows(name)
        return int(kept[:, 0].sum()) if self._streams and len(kept) else len(kept)

    def _check_equal_counts(self) -> None:
        counts = [torch.tensor([self._count(name)]) for name in ("generated", "real")]
        if self.num_classes is not None:
            counts = [
                torch.bincount(self.rows(f"{name}_labels"), minlength=self.num_classes)
                for name in ("generated", "real")
            ]
        different = (counts[0] != counts[1]).nonzero()
        if len(different):
            index = int(different[0])
            where = "" if self.num_classes is None else f" of class {index}"
            raise ValueError(
                f"a Vendi ratio compares equally many samples, for scores grow with n: expected "
                f"{int(counts[1][index])} generated ones{where}, as many as real, got {int(counts[0][index])}; "
                "draw as many"
            )

    def _checked_labels(self, features: Tensor, labels: Tensor | None) -> Tensor | None:
        if (labels is None) != (self.num_classes is None):
            given = "none" if labels is None else "some"
            raise ValueError(
                f"labels go with num_classes: got {given} with num_classes={self.num_classes}; give both or neither"
            )
        if labels is None or self.num_classes is None:
            return None
        return _labels_of(features, labels, self.num_classes)
