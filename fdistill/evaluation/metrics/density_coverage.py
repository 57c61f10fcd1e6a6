"""Density and coverage of generated samples by nearest neighbours (arXiv 2002.09797)."""

from typing import NamedTuple

from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import check_features
from fdistill.evaluation.metrics.neighbours import ball_members, check_neighbour, neighbour_statistics, paired_points

DENSITY_K = 5


class DensityAndCoverage(NamedTuple):
    """Two float64 scalars, both near 1 for equal laws."""

    density: Tensor  # how many of the reference's balls hold a generated sample, on average, over k; in [0, m / k]
    coverage: Tensor  # share of the reference's balls that hold a generated sample, in [0, 1]


class ReferenceBalls(NamedTuple):
    """Sample by sample what density and coverage are means of, for bootstraps and for single classes."""

    counts: Tensor  # int64 [n]: how many of the reference's balls hold each generated sample; density is the mean / k
    covered: Tensor  # bool [m]: which of the reference's balls hold a generated sample


def density_coverage(
    generated: Tensor, reference: Tensor, k: int = DENSITY_K, strict: bool = True
) -> DensityAndCoverage:
    """Return how densely generated samples sit among the reference, and how much of it they reach.

    Around every reference sample there is a ball to its k-th neighbour in the reference, itself not counted. A
    collapsed generator has a high density, several times 1, and a low coverage. Repeated reference samples have balls
    of radius 0, which are empty where `strict`.

    Args:
        generated: features [n, d], n >= 1.
        reference: features [m, d], m > k.
        k: which neighbour sets the radius, >= 1; for equal laws coverage tends to `1 - 2^-k` at n = m.
        strict: whether the balls are open, as defined.

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or k below 1.
    """
    counts, covered = reference_balls(generated, reference, k, strict)
    return DensityAndCoverage(counts.double().mean() / k, covered.double().mean())


def reference_balls(generated: Tensor, reference: Tensor, k: int = DENSITY_K, strict: bool = True) -> ReferenceBalls:
    """Return who lies in the reference's balls; arguments and errors are those of `density_coverage`."""
    check_neighbour("k", k)
    check_features("reference", reference, minimum=k + 1)
    fake, real = paired_points(generated, reference, minimum=1)
    ((counts, covered),), _ = ball_members(fake, real, [real.limits(real.squared_radii((k,))[0], strict)])
    return ReferenceBalls(counts, covered)


class DensityCoverage(FeatureMetric):
    """`density_coverage` of all samples, as {"density", "coverage"}.

    Args:
        k, strict: as `density_coverage` takes them.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    gives = DensityAndCoverage._fields

    def __init__(self, k: int = DENSITY_K, strict: bool = True, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        check_neighbour("k", k)
        self.k, self.strict = k, strict

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        return density_coverage(generated, real, self.k, self.strict)._asdict()


class NeighbourMetrics(FeatureMetric):
    """{"precision", "recall", "density", "coverage"} at their usual k of 3 and 5, all distances computed once."""

    gives = ("precision", "recall", "density", "coverage")

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        near = neighbour_statistics(generated, real, density_k=DENSITY_K)
        shares = [held.double().mean() for held in (near.in_reference, near.in_generated, near.balls, near.covered)]
        shares[2] /= DENSITY_K
        return dict(zip(self.gives, shares, strict=True))
