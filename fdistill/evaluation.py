"""Student beside teacher beside real data: the same numbers, the same n, several draws."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.data import Batch, GenerativeDataModule
from fdistill.generative_model import GenerativeModel
from fdistill.metrics import vendi_score
from fdistill.random_streams import fold_seed, generator_for
from fdistill.report import FeatureSpace, average_rows, measure, per_class_gaussian


@dataclass
class Evaluation:
    """The report, and the samples of the first draw for the pictures."""

    report: dict[str, Any]
    samples: dict[str, Tensor]


def evaluate_models(
    student: GenerativeModel,
    teacher: GenerativeModel | None,
    data: GenerativeDataModule,
    n: int,
    seed: int,
    repeats: int,
) -> Evaluation:
    """Compare n samples of each source with the same n held-out real ones, `repeats` times with other samples.

    The floor is n real training samples against the held-out ones; class_gaussian is a Gaussian fitted to each class
    of the training split. The features are of a classifier trained on the training split alone. All rows get the
    reference's labels.

    Raises:
        ValueError: if n is larger than the held-out split, or the model does not fit the data.
    """
    started = time.perf_counter()
    train, held_out = data.train_split, data.held_out_split
    _check(student, teacher, data, n, len(held_out.x), repeats)
    chosen = torch.randperm(len(held_out.x), generator=generator_for(seed))[:n]
    reference = Batch(held_out.x[chosen], held_out.labels[chosen])
    labelled = data.num_classes > 1
    space = FeatureSpace(train.x, train.labels if labelled else None, data.num_classes, seed)
    gaussian = per_class_gaussian(train.x, train.labels if labelled else None, data.num_classes)
    models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("floor", *models, "class_gaussian")}
    first: dict[str, Tensor] = {}
    for repeat in tqdm(range(repeats), desc="Evaluation", unit="draw"):
        draw_seed = fold_seed(seed, repeat) % 2**32
        real = torch.randperm(len(train.x), generator=generator_for(seed, repeat))[:n]
        drawn = {"floor": (train.x[real], train.labels[real])}
        for name, model in models.items():
            labels = reference.labels if model.num_classes else None
            drawn[name] = (model.sample(model.noise(n, draw_seed), labels), labels)
        drawn["class_gaussian"] = (gaussian(reference.labels, generator_for(seed, repeat)), reference.labels)
        for name, (samples, labels) in drawn.items():
            rows[name].append(measure(space, samples, labels, reference.x, data.num_classes))
        first = first or {name: samples for name, (samples, _) in drawn.items()}
    speeds = {name: samples_per_second(model, n) for name, model in models.items()}
    report: dict[str, Any] = {name: average_rows(found) for name, found in rows.items()}
    report |= {
        "held_out": _held_out(space, reference),
        "n": n,
        "repeats": repeats,
        "seed": seed,
        "features": space.name,
        "data": data.spec(),
        "samples_per_second": speeds,
        "speedup": speeds["student"] / speeds["teacher"] if teacher is not None else None,
        "teacher_evaluations": None if teacher is None else teacher.evaluations,
        "seconds": _seconds(models, started),
        **{f"{name}_facts": model.facts for name, model in models.items()},
    }
    return Evaluation(report, first)


def _held_out(space: FeatureSpace, reference: Batch) -> dict[str, float | None]:
    """What the reference itself has: its Vendi score, and how well the classifier reads images it has not seen."""
    predicted = space.predict(reference.x)
    accuracy = None if predicted is None else float((predicted == reference.labels).double().mean())
    return {"vendi": float(vendi_score(space.features(reference.x))), "accuracy": accuracy}


def samples_per_second(model: GenerativeModel, n: int, repeats: int = 3) -> float:
    """Median over `repeats` runs of n samples in one batch, after one that does not count."""
    noise, labels = model.noise(n, 0), model.labels(n)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        model.sample(noise, labels, batch_size=n)
        times.append(time.perf_counter() - started)
    return n / statistics.median(times[1:])


def _check(
    student: GenerativeModel,
    teacher: GenerativeModel | None,
    data: GenerativeDataModule,
    n: int,
    most: int,
    repeats: int,
) -> None:
    if not 4 < n <= most:
        raise ValueError(f"n samples are compared with n held-out real ones: expected 4 < n <= {most}, got {n}")
    if repeats < 1:
        raise ValueError(f"repeats is at least 1: got {repeats}")
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
        if model.sample_shape != tuple(data.sample_shape) or model.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"the {name} makes samples {model.sample_shape} of {model.num_classes} classes, the data has "
                f"{tuple(data.sample_shape)} and {data.num_classes}: give the data it was trained on"
            )


def _seconds(models: dict[str, GenerativeModel], started: float) -> dict[str, float]:
    spent = {f"{name} training": model.facts.get("train_seconds") for name, model in models.items()}
    return {name: value for name, value in spent.items() if value} | {
        "evaluation": round(time.perf_counter() - started, 1)
    }
