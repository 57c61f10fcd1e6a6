"""Nearest neighbours in float64: radii, members of balls, crowding; a strip of the distance matrix at a time.

Squared distances come from one matrix product and are off by rounding. Here two distances that rounding cannot tell
apart are equal: a copy of a point lies at distance 0, and a point at a ball's very edge is inside a closed ball and
outside an open one, whatever the order in which a processor adds. scikit-learn's searches know neither that nor a GPU.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.evaluation.metrics.blocks import ROWS, blocks, check_features, check_pair

GROUP = 16
"""The k smallest of a row are sought in the k groups of 16 with the smallest minima, not in the whole row."""
STRIP = {"cpu": 2**20, "cuda": 2**26}
"""Distances held at a time: on a CPU 8 MiB, near its cache; on a GPU 512 MiB."""
LEAST_ROWS = 32
"""Rows of a strip where the other set is large: fewer would starve the matrix product."""


class Nearest(NamedTuple):
    """Neighbours of each point, nearest first."""

    distances: Tensor  # Euclidean, float64 [n, k]; exactly 0 between copies
    indices: Tensor  # int64 [n, k]


class Crowding(NamedTuple):
    """How close the points of a set lie to each other."""

    counts: Tensor  # int64 [n]: points within the radius, its edge included
    nearest: Tensor  # float64 [n]: Euclidean distance to the nearest other point; exactly 0 between copies


class NeighbourStatistics(NamedTuple):
    """What precision, recall, density and coverage are means of."""

    in_reference: Tensor  # bool [n]: which generated samples lie in the reference's manifold
    in_generated: Tensor  # bool [m]: which reference samples lie in the generated manifold
    balls: Tensor  # int64 [n]: how many of the reference's balls hold each generated sample
    covered: Tensor  # bool [m]: which of the reference's balls hold a generated sample


class Points:
    """Points [n, d] as factors of the product `(x, |x|^2, 1) . (-2 y, 1, |y|^2) = |x - y|^2`.

    Attributes:
        n: how many.
        columns: second factors [w, d + 2], filled up to whole groups by points infinitely far away.
        squared_norms: of the centred points [n]; they set the size of rounding errors.
    """

    def __init__(self, features: Tensor, centre: Tensor) -> None:
        """Take checked features [n, d]; distances between two objects are right where both have one centre [d]."""
        self.n, d = features.shape
        width = -(-self.n // GROUP) * GROUP
        self.columns = torch.zeros(width, d + 2, dtype=torch.float64, device=features.device)
        self.columns[self.n :, d + 1] = torch.inf
        start = 0
        for block in blocks(features):
            rows = self.columns[start : start + len(block)]
            centred = block - centre
            rows[:, :d], rows[:, d], rows[:, d + 1] = -2 * centred, 1, centred.square().sum(1)
            start += len(block)
        self.squared_norms = self.columns[: self.n, d + 1]

    def strips(self, others: "Points") -> Iterator[tuple[slice, Tensor]]:
        """Return all squared distances [n, w] as strips [r, w] and the rows they are of; each overwrites the last."""
        width = len(others.columns)
        rows = max(STRIP.get(self.columns.device.type, STRIP["cuda"]) // width, LEAST_ROWS)
        strip = self.columns.new_empty(min(rows, self.n), width)
        for start in range(0, self.n, rows):
            part = self.columns[start : min(start + rows, self.n)]
            left = torch.cat([-0.5 * part[:, :-2], part[:, -1:], part[:, -2:-1]], dim=1)
            yield slice(start, start + len(part)), torch.mm(left, others.columns.T, out=strip[: len(part)])

    def own_strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Return strips of the distances within the set; each point is infinitely far from itself."""
        for rows, strip in self.strips(self):
            strip.diagonal(rows.start).fill_(torch.inf)
            yield rows, strip

    def limits(self, squared_radii: Tensor, strict: bool) -> Tensor:
        """Return the largest computed squared distances [n] that count as inside balls of these radii [n].

        The bound of a dot product puts the error of a squared distance r^2 from x below 6 (d + 3) eps (|x|^2 + r^2).
        The radius has it too, so 16 instead of 6 tells apart only what is apart.
        """
        number = torch.finfo(torch.float64)
        scale = self.squared_norms + squared_radii
        slack = 16 * (self.columns.shape[1] + 1) * number.eps * scale + number.tiny
        return squared_radii - slack if strict else squared_radii + slack

    def squared_radii(self, ks: Sequence[int]) -> Tensor:
        """Return the squared distances [len(ks), n] to the k-th neighbours, k < n, the point itself not counted."""
        parts = [_smallest(strip, max(ks))[0][:, [k - 1 for k in ks]] for _, strip in self.own_strips()]
        return self.settled(torch.cat(parts).T)

    def settled(self, squared: Tensor) -> Tensor:
        """Return computed squared distances [..., n] from the points with rounding errors around 0 replaced by 0."""
        return squared.where(squared > self.limits(torch.zeros_like(self.squared_norms), strict=False), 0)


def paired_points(generated: Tensor, reference: Tensor, minimum: int) -> tuple[Points, Points]:
    """Return both sets around their common centre; raises ValueError as `check_pair` does."""
    check_pair(generated, reference, minimum)
    total = sum(block.sum(0) for features in (generated, reference) for block in blocks(features))
    centre = cast(Tensor, total) / (len(generated) + len(reference))
    return Points(generated, centre), Points(reference, centre)


def check_neighbour(name: str, k: int) -> None:
    """Raise ValueError for a neighbour before the first."""
    if k < 1:
        raise ValueError(f"{name} counts neighbours from 1: expected >= 1, got {k}")


def ball_members(
    points: Points, others: Points, balls_of_others: Sequence[Tensor] = (), balls_of_points: Sequence[Tensor] = ()
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Say in one pass over all pairs who lies in whose balls.

    Args:
        points: n of them.
        others: m of them.
        balls_of_others: `limits` [m], one tensor for each kind of ball.
        balls_of_points: `limits` [n], likewise.

    Returns:
        for each kind of ball of others how many hold each of the points, int64 [n], and which hold any, bool [m];
        for each kind of ball of points which of the others lie in any, bool [m].
    """
    device, width = points.columns.device, len(others.columns)
    padded = [torch.nn.functional.pad(limits, (0, width - others.n), value=-torch.inf) for limits in balls_of_others]
    counts = [torch.zeros(points.n, dtype=torch.int64, device=device) for _ in balls_of_others]
    hit = [torch.zeros(width, dtype=torch.bool, device=device) for _ in balls_of_others]
    held = [torch.zeros(width, dtype=torch.bool, device=device) for _ in balls_of_points]
    for rows, strip in points.strips(others):
        for limits, count, found in zip(padded, counts, hit, strict=True):
            inside = strip <= limits
            count[rows] = _row_counts(inside)
            found |= _any_row(inside)
        for limits, found in zip(balls_of_points, held, strict=True):
            found |= _any_row(strip <= limits[rows, None])
    return [(count, found[: others.n]) for count, found in zip(counts, hit, strict=True)], [h[: others.n] for h in held]


def neighbour_statistics(
    generated: Tensor, reference: Tensor, manifold_k: int = 3, density_k: int = 5
) -> NeighbourStatistics:
    """Return what precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) are means of.

    In two thirds of the time of two calls: the distances between the sets and within each are computed once.

    Args:
        generated: features [n, d], n > max(manifold_k, density_k).
        reference: features [m, d], m > max(manifold_k, density_k).
        manifold_k: neighbour at which the closed balls of precision and recall end, >= 1.
        density_k: neighbour at which the open balls of density and coverage end, >= 1.

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or a k below 1.
    """
    check_neighbour("manifold_k", manifold_k)
    check_neighbour("density_k", density_k)
    fake, real = paired_points(generated, reference, minimum=1 + max(manifold_k, density_k))
    for_manifold, for_density = real.squared_radii((manifold_k, density_k))
    (own,) = fake.squared_radii((manifold_k,))
    manifold, density = real.limits(for_manifold, strict=False), real.limits(for_density, strict=True)
    ((in_balls, _), (counts, covered)), (recalled,) = ball_members(
        fake, real, [manifold, density], [fake.limits(own, strict=False)]
    )
    return NeighbourStatistics(in_balls > 0, recalled, counts, covered)


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Return each point's distance to its k-th neighbour within the set, float64 [n]; exactly 0 between copies.

    Args:
        features: [n, d], n > k.
        k: >= 1, the point itself not counted.

    Raises:
        ValueError: for a wrong shape, too few points, a NaN, or k below 1.
    """
    check_neighbour("k", k)
    return _alone(features, minimum=k + 1).squared_radii((k,))[0].sqrt()


def crowding(features: Tensor, radius: float | Tensor) -> Crowding:
    """Return how many points of a set lie within `radius` of each, itself included, and how far its nearest is.

    Args:
        features: [n, d], n >= 2.
        radius: Euclidean, finite, >= 0; one for all points.

    Raises:
        ValueError: for a wrong shape, a single point, a NaN, or a radius that is no distance.
    """
    if not 0 <= radius < torch.inf:
        raise ValueError(f"a radius is a distance: expected a finite number >= 0, got {float(radius)}")
    points = _alone(features, minimum=2)
    squared = torch.as_tensor(radius, dtype=torch.float64, device=features.device).square()
    limits = points.limits(squared, strict=False)
    parts = [
        (_row_counts(strip <= limits[rows, None]).long() + 1, strip.amin(1)) for rows, strip in points.own_strips()
    ]
    counts, nearest = (torch.cat(values) for values in zip(*parts, strict=True))
    return Crowding(counts, points.settled(nearest).sqrt())


def nearest(points: Tensor, others: Tensor, k: int = 1) -> Nearest:
    """Return the k nearest of `others` to each of `points`.

    They are chosen up to rounding, and their distances then computed from the differences, right to the last digits.

    Args:
        points: features [n, d], n >= 1.
        others: features [m, d], m >= k.
        k: >= 1.

    Raises:
        ValueError: for a wrong shape, too few samples, a NaN, or k below 1.
    """
    check_neighbour("k", k)
    check_features("others", others, minimum=k)
    left, right = paired_points(points, others, minimum=1)
    indices = torch.cat([_smallest(strip, k)[1] for _, strip in left.strips(right)])
    distances = torch.stack([_row_distances(points, others, chosen) for chosen in indices.T], dim=1)
    distances, order = distances.sort(dim=1, stable=True)
    return Nearest(distances, indices.gather(1, order))


def _alone(features: Tensor, minimum: int) -> Points:
    """Return a set around its own centre; raises ValueError as `check_features` does."""
    check_features("features", features, minimum)
    return Points(features, cast(Tensor, sum(block.sum(0) for block in blocks(features))) / len(features))


def _row_distances(points: Tensor, others: Tensor, chosen: Tensor) -> Tensor:
    """Return the distance of each of `points` [n, d] to the one of `others` [m, d] chosen for it, float64 [n]."""
    pairs = zip(blocks(points), chosen.split(ROWS), strict=True)
    return torch.cat([(block - others[rows].detach().double()).norm(dim=1) for block, rows in pairs])


def _smallest(strip: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of each row of a strip [r, w], ascending, and where they are: [r, k] each.

    Exact: a row's k smallest lie in the k groups of smallest minima, or are equal to others that do.
    """
    rows, width = strip.shape
    groups = width // GROUP
    if groups <= k:
        values, places = strip.topk(k, dim=1, largest=False)
        return values, places
    grouped = strip.view(rows, GROUP, groups)
    best = grouped.amin(1).topk(k, dim=1, largest=False).indices
    candidates = grouped.gather(2, best[:, None].expand(rows, GROUP, k)).flatten(1)
    values, places = candidates.topk(k, dim=1, largest=False)
    return values, places // k * groups + best.gather(1, places % k)


def _row_counts(inside: Tensor) -> Tensor:
    """Return the number of True in each row of [r, w], int32 [r]: sums in int64 take two to twenty times as long."""
    return inside.sum(1, dtype=torch.int32)


def _any_row(inside: Tensor) -> Tensor:
    """Return `inside.any(0)` [w] of [r, w]; on a CPU the maximum of bytes is forty times faster."""
    return inside.view(torch.uint8).amax(0).bool()
