"""Kernel distance: the unbiased squared maximum mean discrepancy, KID for Inception features (arXiv 1801.01401)."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import ROWS, blocks, check_pair, squared_distances

Similarity = Callable[[Tensor, Tensor], Tensor]


class KernelDistanceEstimate(NamedTuple):
    """Two float64 scalars."""

    distance: Tensor  # squared distance, 0 on average for equal laws and then below 0 as often as above
    standard_error: Tensor  # of `distance`, by the jackknife; too large rather than too small


def kernel_distance(
    generated: Tensor,
    reference: Tensor,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    kernel: str = "polynomial",
    bandwidth: float | None = None,
) -> KernelDistanceEstimate:
    """Return the squared distance of the two laws' means in the kernel's space, estimated without bias from all pairs.

    `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)` (arXiv 1801.01401). Unlike the
    Frechet distance it has the same expectation at every n, so that values at different n may be compared. Published
    KIDs average it over random subsets of 1,000; all pairs have the same expectation and a smaller variance.

    The standard error leaves out each sample in turn, in closed form from the sums of the kernel's rows. By Efron and
    Stein (1981) its square is too large on average: by little between distinct laws, by a factor of about 2 for equal.

    Args:
        generated: features [n, d], n >= 3.
        reference: features [m, d], m >= 3.
        degree: of the polynomial kernel `(gamma x.y + coef)^degree`, >= 1.
        gamma: > 0; None is 1 / d.
        coef: >= 0.
        kernel: "polynomial", which sees the first `degree` moments, or "rbf", `exp(-|x - y|^2 / (2 bandwidth^2))`.
        bandwidth: > 0, for "rbf" alone.

    Raises:
        ValueError: for a wrong shape, fewer than three samples, a NaN, or a broken kernel.
    """
    _check_kernel(degree, gamma, coef, kernel, bandwidth)
    check_pair(generated, reference, minimum=3)
    if kernel == "rbf":
        centre = sum(rows.sum(0) for rows in blocks(reference)) / len(reference)
        width = cast(float, bandwidth)

        def similarity(x: Tensor, y: Tensor) -> Tensor:
            return squared_distances(x - centre, y - centre).mul_(-0.5 / width**2).exp_()
    else:
        scale = 1 / generated.shape[1] if gamma is None else gamma

        def similarity(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T).mul_(scale).add_(coef).pow_(degree)

    n, m = len(generated), len(reference)
    own_x, own_y = _own_sums(generated, similarity), _own_sums(reference, similarity)
    cross_x, cross_y = _cross_sums(generated, reference, similarity)
    sum_x, sum_y, cross = own_x.sum(), own_y.sum(), cross_x.sum()
    within_x, within_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    without_x = (sum_x - 2 * own_x) / ((n - 1) * (n - 2)) + within_y - 2 * (cross - cross_x) / ((n - 1) * m)
    without_y = within_x + (sum_y - 2 * own_y) / ((m - 1) * (m - 2)) - 2 * (cross - cross_y) / (n * (m - 1))
    variances = (values.var(correction=0) * (len(values) - 1) for values in (without_x, without_y))
    variance = cast(Tensor, sum(variances))
    return KernelDistanceEstimate(within_x + within_y - 2 * cross / (n * m), variance.sqrt())


class KernelDistance(FeatureMetric):
    """`kernel_distance` of all samples, as {"kernel_distance", "kernel_distance_error"}.

    Args:
        degree, gamma, coef, kernel, bandwidth: as `kernel_distance` takes them.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    gives = ("kernel_distance", "kernel_distance_error")

    def __init__(
        self,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        kernel: str = "polynomial",
        bandwidth: float | None = None,
        reset_real_features: bool = True,
    ) -> None:
        super().__init__(reset_real_features)
        self.kernel = (degree, gamma, coef, kernel, bandwidth)
        _check_kernel(*self.kernel)

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.gives, kernel_distance(generated, real, *self.kernel), strict=True))


def _own_sums(x: Tensor, similarity: Similarity) -> Tensor:
    """Return for every row of `x` [n, d] the sum of its similarities to the other rows [n]."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i, (rows, part) in enumerate(zip(blocks(x), sums.split(ROWS), strict=True)):
        for j, others in enumerate(blocks(x)):
            values = similarity(rows, others)
            if i == j:
                values.fill_diagonal_(0)  # subtracted from the sum it would cost the digits of the rest
            part += values.sum(1)
    return sums


def _cross_sums(x: Tensor, y: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Return for every row of `x` [n, d] and of `y` [m, d] the sum of its similarities to the other side, [n], [m]."""
    by_x, by_y = (torch.zeros(len(side), dtype=torch.float64, device=side.device) for side in (x, y))
    for rows, part_x in zip(blocks(x), by_x.split(ROWS), strict=True):
        for others, part_y in zip(blocks(y), by_y.split(ROWS), strict=True):
            values = similarity(rows, others)
            part_x += values.sum(1)
            part_y += values.sum(0)
    return by_x, by_y


def _check_kernel(degree: int, gamma: float | None, coef: float, kernel: str, bandwidth: float | None) -> None:
    """Raise ValueError for a kernel that is none; its numbers are those of `kernel_distance`."""
    if kernel not in ("polynomial", "rbf"):
        raise ValueError(f'kernel: expected "polynomial" or "rbf", got {kernel!r}')
    if (kernel == "rbf") != (bandwidth is not None):
        raise ValueError(
            f'bandwidth belongs to kernel="rbf" and is needed there: got kernel={kernel!r}, bandwidth={bandwidth}; '
            "the median distance of reference samples is a usual one"
        )
    for name, value, good, expected in (
        ("degree", degree, degree == int(degree) >= 1, "a whole number >= 1"),
        ("gamma", gamma, gamma is None or gamma > 0, "> 0"),
        ("coef", coef, coef >= 0, ">= 0"),
        ("bandwidth", bandwidth, bandwidth is None or bandwidth > 0, "> 0"),
    ):
        if not good:
            raise ValueError(f"{name} of a kernel: expected {expected}, got {value}")
