"""One row of a report: six numbers for one set of samples; rows averaged over repeats; the report as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fdistill.features import FeatureExtractor
from fdistill.files import atomic_write
from fdistill.metrics import class_entropy, frechet_distance, precision_recall, vendi_score

METRICS = ("frechet_distance", "precision", "recall", "accuracy", "class_entropy", "vendi")


def measure(
    extractor: FeatureExtractor,
    generated_x: Tensor,
    wanted_labels: Tensor | None,
    reference_x: Tensor,
    num_classes: int | None,
) -> dict[str, float | None]:
    """Return the six numbers of `generated_x` [n, ...] against `reference_x` [m, ...], keyed by METRICS.

    Args:
        extractor: prepared; where samples are compared.
        generated_x: samples to judge, n > 3.
        wanted_labels: the class [n] each was asked to be, or None; `accuracy` is the share that the classifier of
            `extractor` reads so. It rises under collapse within a class: read it beside recall.
        reference_x: real samples, best held out from all training; equal n and m over all rows, m > 3.
        num_classes: classes of the data. `class_entropy` and `accuracy` are None where `extractor` has no classifier.

    Raises:
        ValueError: for samples of another shape, too few of them, or a NaN.
    """
    generated, reference = extractor.extract(generated_x), extractor.extract(reference_x)
    nearest = precision_recall(generated, reference)
    predicted = extractor.classify(generated)
    accuracy = entropy = None
    if predicted is not None and num_classes:
        entropy = float(class_entropy(predicted, num_classes))
        if wanted_labels is not None:
            if wanted_labels.shape != predicted.shape:
                raise ValueError(
                    f"wanted_labels hold one class per sample: expected [{len(predicted)}], "
                    f"got {list(wanted_labels.shape)}"
                )
            accuracy = float((predicted == wanted_labels.to(predicted.device)).double().mean())
    return {
        "frechet_distance": float(frechet_distance(generated, reference)),
        "precision": float(nearest.precision),
        "recall": float(nearest.recall),
        "accuracy": accuracy,
        "class_entropy": entropy,
        "vendi": float(vendi_score(generated)),
    }


def average_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number over repeats, and `frechet_distance_range` [min, max]; None stays None.

    Raises:
        ValueError: when there is no row.
    """
    if not rows:
        raise ValueError("an average needs at least one row: got none; measure first")
    average: dict[str, Any] = {}
    for name in METRICS:
        values = [row[name] for row in rows]
        average[name] = None if None in values else sum(values) / len(values)
    distances = [row["frechet_distance"] for row in rows]
    average["frechet_distance_range"] = [min(distances), max(distances)]
    return average


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
