"""Precision and recall of generated samples by nearest neighbours (arXiv 1904.06991)."""

from typing import NamedTuple

from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.neighbours import ball_members, check_neighbour, paired_points


class PrecisionAndRecall(NamedTuple):
    """Two float64 scalars in [0, 1]; 1 is best."""

    precision: Tensor  # share of generated samples inside the reference's manifold: quality
    recall: Tensor  # share of reference samples inside the generated manifold: diversity


class InsideManifolds(NamedTuple):
    """Sample by sample what precision and recall are means of, for bootstraps and for single classes."""

    generated: Tensor  # bool [n]: inside the reference's manifold
    reference: Tensor  # bool [m]: inside the generated manifold


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3, strict: bool = False) -> PrecisionAndRecall:
    """Return how much of each set lies in the other's manifold.

    The manifold of a set is the union of the balls around its points that reach to their k-th neighbour, the point
    itself not counted. Both numbers depend on n and m: compare at equal ones.

    Args:
        generated: features [n, d], n > k.
        reference: features [m, d], m > k.
        k: which neighbour sets the radius, >= 1.
        strict: whether the balls are open, as in the code of arXiv 2002.09797; the definition has closed ones.

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or k below 1.
    """
    inside = inside_manifolds(generated, reference, k, strict)
    return PrecisionAndRecall(inside.generated.double().mean(), inside.reference.double().mean())


def inside_manifolds(generated: Tensor, reference: Tensor, k: int = 3, strict: bool = False) -> InsideManifolds:
    """Return which samples lie in the other set's manifold; arguments and errors are those of `precision_recall`."""
    check_neighbour("k", k)
    fake, real = paired_points(generated, reference, minimum=k + 1)
    of_fake, of_real = (side.limits(side.squared_radii((k,))[0], strict) for side in (fake, real))
    ((balls, _),), (recalled,) = ball_members(fake, real, [of_real], [of_fake])
    return InsideManifolds(balls > 0, recalled)


class PrecisionRecall(FeatureMetric):
    """`precision_recall` of all samples, as {"precision", "recall"}.

    Args:
        k, strict: as `precision_recall` takes them.
        reset_real_features: whether `reset()` forgets the real samples too.
    """

    gives = PrecisionAndRecall._fields

    def __init__(self, k: int = 3, strict: bool = False, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        check_neighbour("k", k)
        self.k, self.strict = k, strict

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        return precision_recall(generated, real, self.k, self.strict)._asdict()
