"""Tail index difference: do generated samples crowd together more than real ones do (arXiv 2508.16154)?"""

from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import check_pair
from fdistill.evaluation.metrics.neighbours import Crowding, check_neighbour, crowding, neighbour_distances


class TailIndices(NamedTuple):
    """Float64 scalars of a generated set G against a reference R of equal n."""

    tid: Tensor  # tail index of G less that of R: 0 for equal laws; scale free, so blind to uniform crowding
    anchored_tid: Tensor  # the same above the reference's threshold: 0 for equal laws; rises with every crowding
    count_ratio: Tensor  # mean count of G / mean count of R: 1 for equal laws
    neighbour_distance_ratio: (
        Tensor  # median distance to the nearest other sample, G / R: 1 for equal laws, < 1 crowded
    )
    eps: Tensor  # radius in which neighbours were counted, Euclidean


def tail_indices(
    generated: Tensor,
    reference: Tensor,
    k: float = 0.1,
    eps: float | Tensor | None = None,
    eps_neighbour: int = 20,
    count_self: bool = True,
) -> TailIndices:
    """Return the tail index difference, its anchored form, and two plain numbers to read beside them.

    N_i counts the samples within eps of the i-th, in its own set. `tid` is Hill's estimator of the tail of the counts,
    `xi = mean_{i <= k} ln N_(i) - ln N_(k+1)`, of G less that of R; the published text leaves k, eps and the counting
    of a sample itself open. Hill's estimator does not see that all counts grew. `anchored_tid` does: with u the
    (k+1)-th largest count of R, it is `(1/k) sum_i max(0, ln(N_i / u))` of G less that of R.

    Distances enter by their median, the lower of the two in the middle: a few stray samples do not hide a crowd. Where
    both medians are 0 their ratio is 1.

    Args:
        generated: features [n, d], n >= 2.
        reference: features [n, d].
        k: share of the n counts that are the tail, in (0, 1); at least one count.
        eps: radius, finite, >= 0; None is the reference's median distance to the `eps_neighbour`-th neighbour.
        eps_neighbour: >= 1; the farthest sample where there are fewer.
        count_self: whether N_i counts the i-th sample, so that it is never 0.

    Raises:
        ValueError: for a wrong shape, unequal or too few samples, a NaN, wrong arguments, or, without `count_self`, an
            eps so small that the reference's tail holds a count of 0.
    """
    _check_arguments(k, eps_neighbour)
    check_pair(generated, reference, minimum=2)
    if len(generated) != len(reference):
        raise ValueError(
            f"counts of neighbours grow with n: expected {len(reference)} generated samples as in the reference, "
            f"got {len(generated)}; cut the larger set"
        )
    if eps is None:
        eps = neighbour_distances(reference, min(eps_neighbour, len(reference) - 1)).median()
    radius = eps
    fake, real = (_counted(crowding(side, radius), count_self) for side in (generated, reference))
    threshold = tail_threshold(real.counts, k)
    if not threshold > 0:
        raise ValueError(
            f"the reference's tail starts above 0: expected a count >= 1, got 0 within eps = {float(eps)}; "
            "use a larger eps or count_self=True"
        )
    return TailIndices(
        tail_index(fake.counts, k) - tail_index(real.counts, k),
        anchored_tail(fake.counts, k, threshold) - anchored_tail(real.counts, k, threshold),
        fake.counts.double().mean() / real.counts.double().mean(),
        _ratio(fake.nearest.median(), real.nearest.median()),
        torch.as_tensor(eps, dtype=torch.float64, device=reference.device),
    )


def tail_index(counts: Tensor, k: float = 0.1) -> Tensor:
    """Return Hill's estimator `mean_{i <= k} ln N_(i) - ln N_(k+1)` of counts [n], n >= 2, a float64 scalar >= 0.

    Equal counts give 0, also equal ones of 0; a tail that starts at 0 and rises above it gives inf.

    Args:
        counts: integers >= 0 [n], such as `crowding` returns.
        k: share of n, in (0, 1).
    """
    tail, threshold = _tail(counts, k), tail_threshold(counts, k)
    return torch.where(tail == threshold, 0, tail.log() - threshold.log()).mean()


def anchored_tail(counts: Tensor, k: float, threshold: Tensor) -> Tensor:
    """Return `(1/k) sum_i max(0, ln(N_i / u))` of counts [n] >= 0 and a threshold u > 0, a float64 scalar >= 0.

    The sum is over all n; k is the number of counts in the tail. Of the reference and its own threshold it is
    `tail_index`.
    """
    return (counts.double() / threshold).log().clamp(min=0).sum() / _tail_length(len(counts), k)


def tail_threshold(counts: Tensor, k: float) -> Tensor:
    """Return the (k+1)-th largest of counts [n], where k is the share `k` of n; a float64 scalar."""
    return counts.topk(_tail_length(len(counts), k) + 1).values[-1].double()


class TailIndexDifference(FeatureMetric):
    """`tail_indices` of equally many generated and real samples, all its numbers but eps.

    Returns {"tid", "anchored_tid", "count_ratio", "neighbour_distance_ratio"}.

    Args:
        k, eps, eps_neighbour, count_self: as `tail_indices` takes them.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    gives = TailIndices._fields[:-1]

    def __init__(
        self,
        k: float = 0.1,
        eps: float | None = None,
        eps_neighbour: int = 20,
        count_self: bool = True,
        reset_real_features: bool = True,
    ) -> None:
        super().__init__(reset_real_features)
        _check_arguments(k, eps_neighbour)
        self.arguments = (k, eps, eps_neighbour, count_self)

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.gives, tail_indices(generated, real, *self.arguments), strict=False))


def _check_arguments(k: float, eps_neighbour: int) -> None:
    if not 0 < k < 1:
        raise ValueError(f"k is the share of samples in the tail: expected it in (0, 1), got {k}")
    check_neighbour("eps_neighbour", eps_neighbour)


def _counted(crowd: Crowding, count_self: bool) -> Crowding:
    return crowd if count_self else crowd._replace(counts=crowd.counts - 1)


def _tail_length(n: int, k: float) -> int:
    """Return the number of counts in the tail, at least one and not all."""
    return min(max(round(k * n), 1), n - 1)


def _tail(counts: Tensor, k: float) -> Tensor:
    """Return the largest counts [k n], float64."""
    return counts.topk(_tail_length(len(counts), k)).values.double()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b of numbers >= 0, and 1 where both are 0."""
    return torch.where((a == 0) & (b == 0), 1, a / b)
