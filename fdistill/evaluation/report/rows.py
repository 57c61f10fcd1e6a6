"""One row of a report: every metric of one set of samples beside the reference; rows averaged; the report as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fdistill.core.atomic_files import atomic_write
from fdistill.core.random import generator_for
from fdistill.evaluation.metrics import (
    ModeCoverage,
    frechet_distance,
    in_batch_similarity,
    inside_manifolds,
    kernel_distance,
    local_coverage,
    memorized_fraction,
    neighbour_statistics,
    paired_distance,
    tail_diagnostics,
    tail_indices,
    vendi_score,
)
from fdistill.evaluation.metrics.blocks import blocks

DENSITY_K = 5
DIRECTIONS = 1000  # along which tails are looked for
LEAST_SAMPLES = DENSITY_K + 1


@dataclass
class Samples:
    """What the metrics read of n samples.

    Attributes:
        features: [n, d], on the extractor's device like all that follows.
        modes: class or mode read from each, int64 [n], -1 for none; None where nobody can tell.
        wanted: class that each was asked to be, or has, int64 [n]; None without classes.
    """

    features: Tensor
    modes: Tensor | None = None
    wanted: Tensor | None = None

    def __post_init__(self) -> None:
        for name, labels in (("modes", self.modes), ("wanted", self.wanted)):
            if labels is not None and labels.shape != self.features.shape[:1]:
                raise ValueError(
                    f"{name} hold one class per sample: expected [{len(self.features)}], got {list(labels.shape)}"
                )

    def __getitem__(self, index: Tensor) -> "Samples":
        there = index.to(self.features.device)
        modes, wanted = (None if kept is None else kept[there] for kept in (self.modes, self.wanted))
        return Samples(self.features[there], modes, wanted)

    def __len__(self) -> int:
        return len(self.features)


def joined(first: Samples, second: Samples) -> Samples:
    """Both sets as one; classes are kept where both have them."""
    pairs = ((first.modes, second.modes), (first.wanted, second.wanted))
    classes = (None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
    return Samples(torch.cat([first.features, second.features]), *classes)


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
    distance, error = kernel_distance(generated.features, reference.features)
    kurtosis, projection = _tails(generated.features)
    return compare(generated, reference, num_modes) | {
        "kernel_distance": float(distance),
        "kernel_distance_error": float(error),
        "excess_kurtosis": kurtosis,
        "projection": projection,
        "memorized_fraction": None if training is None else float(memorized_fraction(generated.features, training)),
        **_paired(generated.features, teacher),
    }


def compare(
    generated: Samples, reference: Samples, num_modes: int = 0, radius: Tensor | None = None
) -> dict[str, float | None]:
    """Return the metrics of `measure` that read two sets alone; arguments and errors are its own.

    `radius` is the one within which crowding counts neighbours, where it is not to be that of this reference.
    """
    fake, real = generated.features, reference.features
    near = neighbour_statistics(fake, real, density_k=DENSITY_K)
    tails = tail_indices(fake, real, eps=radius)
    vendi = float(vendi_score(fake))
    values = {
        "frechet_distance": float(frechet_distance(fake, real)),
        "precision": _share(near.in_reference),
        "recall": _share(near.in_generated),
        "density": float(near.balls.double().mean() / DENSITY_K),
        "coverage": _share(near.covered),
        "vendi": vendi,
        "vendi_ratio": vendi / float(vendi_score(real)),
        "in_batch_similarity": float(in_batch_similarity(fake)),
        "tid": float(tails.tid),
        "anchored_tid": float(tails.anchored_tid),
        "count_ratio": float(tails.count_ratio),
        "neighbour_distance_ratio": float(tails.neighbour_distance_ratio),
        "local_coverage": float(local_coverage(fake, real)),
        "mode_coverage": None,
        "class_entropy": None,
        "accuracy": None,
    }
    if num_modes > 1 and generated.modes is not None and reference.modes is not None:
        counted = cast("dict[str, Tensor]", ModeCoverage(num_modes).of(generated.modes, reference.modes))
        values |= {"mode_coverage": float(counted["mode_coverage"]), "class_entropy": float(counted["mode_entropy"])}
    if generated.modes is not None and generated.wanted is not None:
        values["accuracy"] = _share(generated.modes == generated.wanted)
    # a ratio to a reference whose samples coincide is infinite, which JSON cannot hold
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


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


def write_json(path: str | Path, report: dict[str, Any]) -> Path:
    """Write the report to `path` as JSON in one piece and return the path.

    Raises:
        ValueError: when the report holds a NaN or an infinity, which JSON cannot carry.
        OSError: when `path` cannot be written.
    """
    try:
        text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"a report holds finite numbers: {error}; find the broken row before writing it") from error
    return atomic_write(path, text + "\n")


def _share(indicator: Tensor) -> float:
    return float(indicator.double().mean())


def _paired(student: Tensor, teacher: Tensor | None) -> dict[str, float | None]:
    """The mean distance of pairs and its standard error."""
    if teacher is None:
        return {"paired_distance": None, "paired_distance_error": None}
    value = float(paired_distance(student, teacher))
    distances = torch.cat([(a - b).norm(dim=1) for a, b in zip(blocks(student), blocks(teacher), strict=True)])
    return {"paired_distance": value, "paired_distance_error": float(distances.std()) / len(distances) ** 0.5}


def _tails(features: Tensor) -> tuple[float | None, float | None]:
    """Excess kurtosis and projection along fixed directions; None for samples that are all the same."""
    try:
        found = tail_diagnostics(features, DIRECTIONS, generator_for(0))
    except ValueError:  # features were checked before, and only equal ones are left to refuse
        return None, None
    return float(found.excess_kurtosis), float(found.projection)


def _by_class(inside: Tensor, labels: Tensor | None, num_classes: int) -> list[float | None]:
    if labels is None:
        return [None] * num_classes
    groups = (inside[labels == c] for c in range(num_classes))
    return [_share(group) if len(group) else None for group in groups]
