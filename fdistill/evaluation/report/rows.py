"""One row of a report: every metric of one set of samples beside the reference; rows averaged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fdistill.evaluation.metrics import FeatureMetric, ModeCoverage, inside_manifolds
from fdistill.evaluation.metrics.density_coverage import DENSITY_K
from fdistill.evaluation.metrics.suite import IN_REPORTS, NOT_IN_REPORTS, WITHOUT_HALVES, report_metrics
from fdistill.evaluation.samples import Samples, numbers

LEAST_SAMPLES = DENSITY_K + 1


def measure(
    generated: Samples,
    reference: Samples,
    num_modes: int = 0,
    training: Tensor | None = None,
    teacher: Tensor | None = None,
) -> dict[str, float | None]:
    """Return every metric of `generated`, by name; None where it has no meaning here.

    Args:
        generated: n >= 6 samples to judge.
        reference: n real samples, best held out from all training.
        num_modes: of the data; below 2 modes are not counted.
        training: features [m, d] of all training samples, to look for copies of; None for no such look.
        teacher: features [n, d] of a teacher's samples from the same noise; None without one.

    Raises:
        ValueError: for features of another shape, unequal or too few samples, or a NaN.
    """
    return _row(report_metrics(num_modes), generated, reference, training, teacher)


def compare(
    generated: Samples, reference: Samples, num_modes: int = 0, radius: Tensor | None = None
) -> dict[str, float | None]:
    """Return the metrics of `measure` that halves of both sets can be asked for; arguments and errors are its own.

    `radius` is the one within which crowding counts neighbours, where it is not to be that of this reference.
    """
    metrics = report_metrics(num_modes, None if radius is None else float(radius))
    halves = {name: metric for name, metric in metrics.items() if name not in WITHOUT_HALVES}
    return _row(halves, generated, reference)


def _row(
    metrics: Mapping[str, FeatureMetric],
    generated: Samples,
    reference: Samples,
    training: Tensor | None = None,
    teacher: Tensor | None = None,
) -> dict[str, float | None]:
    """The numbers under the names that reports have for them."""
    found = dict.fromkeys(ModeCoverage.gives) | numbers(metrics, generated, reference, training, teacher)
    found["accuracy"] = generated.accuracy
    # a ratio to a reference whose samples coincide is infinite, which JSON cannot hold
    return {
        IN_REPORTS.get(name, name): value if value is None or math.isfinite(value) else None
        for name, value in found.items()
        if name not in NOT_IN_REPORTS
    }


def average_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number over repeats, and `frechet_distance_range` [min, max]; None stays None.

    Raises:
        ValueError: when there is no row.
    """
    if not rows:
        raise ValueError("an average needs at least one row: got none; measure first")
    average: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        average[name] = None if None in values else sum(values) / len(values)
    distances = [row["frechet_distance"] for row in rows]
    average["frechet_distance_range"] = [min(distances), max(distances)]
    return average


def per_class(generated: Samples, reference: Samples, num_classes: int) -> dict[str, list[float | None]]:
    """Return {"precision", "recall"} of each class [num_classes]; None for a class without samples.

    The share of the class' generated samples (by the class wanted, else by the one read) inside the manifold of all
    real ones, and of its real samples inside the manifold of all generated ones.
    """
    inside = inside_manifolds(generated.features, reference.features)
    labels = generated.modes if generated.wanted is None else generated.wanted
    return {
        "precision": _by_class(inside.generated, labels, num_classes),
        "recall": _by_class(inside.reference, reference.wanted, num_classes),
    }


def _share(indicator: Tensor) -> float:
    return float(indicator.double().mean())


def _by_class(inside: Tensor, labels: Tensor | None, num_classes: int) -> list[float | None]:
    if labels is None:
        return [None] * num_classes
    groups = (inside[labels == c] for c in range(num_classes))
    return [_share(group) if len(group) else None for group in groups]
