"""Student beside teacher beside real data: the same numbers, the same n, several draws."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.data import Batch, GenerativeDataModule
from fdistill.features import FeatureExtractor, default_extractor
from fdistill.metrics import vendi_score
from fdistill.random_streams import fold_seed, generator_for
from fdistill.report import average_rows, measure, per_class_gaussian
from fdistill.sources import Source


@dataclass
class Evaluation:
    """The report, and the samples of the first draw for the pictures."""

    report: dict[str, Any]
    samples: dict[str, Tensor]


def evaluate_models(
    student: Source,
    teacher: Source | None,
    data: GenerativeDataModule,
    n: int,
    seed: int,
    repeats: int,
) -> Evaluation:
    """Compare n samples of each source with the same n held-out real ones, `repeats` times with other samples.

    The floor is n real training samples against the held-out ones; class_gaussian is a Gaussian fitted to each class
    of the training split. The features are fitted to the training split alone. All rows get the reference's labels but
    those of a fixed set, which has its own.

    Raises:
        ValueError: if n is larger than the held-out split or a fixed set, or a source does not fit the data.
    """
    started = time.perf_counter()
    train, held_out = data.train_split, data.held_out_split
    _check(student, teacher, data, n, len(held_out.x), repeats)
    chosen = torch.randperm(len(held_out.x), generator=generator_for(seed))[:n]
    reference = Batch(held_out.x[chosen], held_out.labels[chosen])
    labelled = data.num_classes > 1
    extractor = default_extractor(data.sample_shape, data.num_classes)
    extractor.prepare(train.x, train.labels if labelled else None, data.num_classes, seed)
    gaussian = per_class_gaussian(train.x, train.labels if labelled else None, data.num_classes)
    sources = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("floor", *sources, "class_gaussian")}
    first: dict[str, Tensor] = {}
    for repeat in tqdm(range(repeats), desc="Evaluation", unit="draw"):
        draw_seed = fold_seed(seed, repeat) % 2**32
        real = torch.randperm(len(train.x), generator=generator_for(seed, repeat))[:n]
        drawn = {"floor": (train.x[real], train.labels[real])}
        for name, source in sources.items():
            labels = source.labels(n, draw_seed, reference.labels)
            drawn[name] = (source.draw(n, draw_seed, labels), labels)
        drawn["class_gaussian"] = (gaussian(reference.labels, generator_for(seed, repeat)), reference.labels)
        for name, (samples, labels) in drawn.items():
            rows[name].append(measure(extractor, samples, labels, reference.x, data.num_classes))
        first = first or {name: samples for name, (samples, _) in drawn.items()}
    generating = {name: source for name, source in sources.items() if source.evaluations is not None}
    speeds = {name: samples_per_second(source, n) for name, source in generating.items()}
    report: dict[str, Any] = {name: average_rows(found) for name, found in rows.items()}
    report |= {
        "held_out": _held_out(extractor, reference),
        "n": n,
        "repeats": repeats,
        "seed": seed,
        "features": extractor.name,
        "data": data.spec(),
        "samples_per_second": speeds,
        "speedup": speeds["student"] / speeds["teacher"] if len(speeds) == 2 else None,
        "student_evaluations": student.evaluations,
        "teacher_evaluations": None if teacher is None else teacher.evaluations,
        "seconds": _seconds(sources, started),
        **{f"{name}_facts": source.facts for name, source in sources.items()},
    }
    return Evaluation(report, first)


def _held_out(extractor: FeatureExtractor, reference: Batch) -> dict[str, float | None]:
    """What the reference itself has: its Vendi score, and how well the classifier reads images it has not seen."""
    features = extractor.extract(reference.x)
    predicted = extractor.classify(features)
    accuracy = None if predicted is None else float((predicted.cpu() == reference.labels).double().mean())
    return {"vendi": float(vendi_score(features)), "accuracy": accuracy}


def samples_per_second(source: Source, n: int, repeats: int = 3) -> float:
    """Median over `repeats` draws of n samples, after one that does not count."""
    labels = source.labels(n, 0)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        source.draw(n, 0, labels)
        times.append(time.perf_counter() - started)
    return n / statistics.median(times[1:])


def _check(
    student: Source,
    teacher: Source | None,
    data: GenerativeDataModule,
    n: int,
    most: int,
    repeats: int,
) -> None:
    if not 4 < n <= most:
        raise ValueError(f"n samples are compared with n held-out real ones: expected 4 < n <= {most}, got {n}")
    if repeats < 1:
        raise ValueError(f"repeats is at least 1: got {repeats}")
    for name, source in (("student", student), ("teacher", teacher)):
        if source is None:
            continue
        if source.sample_shape != tuple(data.sample_shape) or source.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"the {name} makes samples {source.sample_shape} of {source.num_classes} classes, the data has "
                f"{tuple(data.sample_shape)} and {data.num_classes}: give the data it was trained on"
            )


def _seconds(sources: dict[str, Source], started: float) -> dict[str, float]:
    spent = {f"{name} training": source.facts.get("train_seconds") for name, source in sources.items()}
    return {name: value for name, value in spent.items() if value} | {
        "evaluation": round(time.perf_counter() - started, 1)
    }
