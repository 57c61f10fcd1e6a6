"""Student beside teacher beside real data: the same numbers, the same n, several draws, and what a picture shows."""

import statistics
import time
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from fdistill.core.presets import checkpoint as known_checkpoint
from fdistill.data import CaptionedDigits, GenerativeDataModule, remembered_data, require_data
from fdistill.evaluation.caption_evaluation import (
    CaptionEvaluation,
    caption_teacher,
    evaluate_captions,
    takes_captions,
)
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.held_out import Copies, HeldOutComparison, first_shown
from fdistill.evaluation.metrics.vendi_spectrum import vendi_spectrum
from fdistill.evaluation.report.intervals import LEAST_FOR_INTERVALS, check_splits
from fdistill.evaluation.report.rows import average_rows, measure
from fdistill.evaluation.report.verdict import verdict
from fdistill.evaluation.samples import Samples
from fdistill.evaluation.sources import ModelSource, Source, open_source
from fdistill.models.condition import declared
from fdistill.sampling.draw import require_model
from fdistill.sampling.generator import GenerativeModel

DRAWN = 10_000  # samples of each row in all draws together, where nobody asked for a number of draws
USUAL_REPEATS = 4  # at most
TIMED, FEW_TIMED = 500, 50  # samples at once, whose speed is measured
MOST = 5000  # samples of each source, where nobody asked for another number
LONG = 1.0  # second, which no more than the few may take


@dataclass
class Evaluation:
    """The report, and of the first draw what pictures show.

    Attributes:
        report: plain values.
        samples: by row, the first 50 images or 2,000 points.
        spectra: by row, the eigenvalue shares of the Vendi kernel [r], falling.
        copies: of the student.
    """

    report: dict[str, Any]
    samples: dict[str, Tensor]
    spectra: dict[str, Tensor]
    copies: Copies


def evaluate_models(
    student: Source,
    teacher: Source | None,
    data: GenerativeDataModule,
    n: int | None,
    seed: int,
    repeats: int | None,
    bootstrap: int | None = None,
    extractor: FeatureExtractor | None = None,
) -> Evaluation:
    """Compare n samples of each source with the same n held-out real ones, `repeats` times with other samples.

    The floor is n real training samples against the held-out ones; class_gaussian is a Gaussian fitted to each class
    of the training split. The features are fitted to the training split alone. All rows get the reference's labels but
    those of a fixed set, which has its own. Copies are looked for in the training split, the floor being a part of it.

    Args:
        student: what is judged.
        teacher: what it was distilled from, where known.
        data: real samples; the images of latents.
        n: samples of each row, >= 12; as many as each split has, at most 5000, where None.
        seed: of all draws and of the features.
        repeats: draws that the numbers are means of, >= 1; 4, or 10,000 / n where that is fewer, where None.
        bootstrap: splits into halves that intervals are made of; as `intervals` takes `splits`.
        extractor: prepared here; the default one where not given.

    Raises:
        ValueError: if n is larger than a split or a fixed set, a source does not fit the data, or its samples are
            broken.
    """
    started, data = time.perf_counter(), data.in_pixels()
    n = min(len(data.held_out_samples), len(data.train_samples), MOST) if n is None else n
    repeats = usual_repeats(max(n, 1)) if repeats is None else repeats
    sources = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    _check(sources, data, n, repeats)
    check_splits(bootstrap)
    extractor = extractor or default_extractor(data.sample_shape, data.num_classes)
    comparison = HeldOutComparison(data, extractor, n, seed)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("floor", *sources, "class_gaussian")}
    modes: dict[str, list[Tensor]] = {name: [] for name in rows}
    first: dict[str, Samples] = {}
    shown: dict[str, Tensor] = {}
    copies: Copies | None = None
    for repeat in tqdm(range(repeats), desc="Evaluation", unit="draw"):
        drawn = {}
        for name, x, drawn[name] in comparison.draws(sources, repeat):
            if repeat == 0:
                shown[name] = first_shown(x)
                copies = comparison.copies(x, drawn[name]) if name == "student" else copies
        for name, samples in drawn.items():
            pairs = drawn["teacher"].features if name == "student" and _share_noise(student, teacher) else None
            training = None if name == "floor" else comparison.training
            rows[name].append(measure(samples, comparison.reference, data.num_modes, training, pairs))
            modes[name] += [] if samples.modes is None else [samples.modes]
        first = first or drawn
    report: dict[str, Any] = {name: average_rows(found) for name, found in rows.items()}
    for name, samples in tqdm(first.items(), desc="Intervals", unit="row", disable=bootstrap == 0):
        report[name] |= comparison.details(report[name], samples, modes[name], bootstrap)
    report |= _facts(comparison, sources, repeats) | {"bands": comparison.bands(first["floor"])}
    report["verdict"] = verdict(report)
    report["seconds"] = _seconds(sources, started)
    spectra = {name: vendi_spectrum(first[name].features).cpu() for name in ("floor", *sources)}
    assert copies is not None  # the first draw has a student
    return Evaluation(report, shown, spectra, copies)


def evaluate(
    model: GenerativeModel,
    data: GenerativeDataModule | None = None,
    teacher: GenerativeModel | str | None = None,
    n: int | None = None,
    seed: int = 0,
    repeats: int | None = None,
    bootstrap: int | None = None,
) -> Evaluation | CaptionEvaluation:
    """Measure a model beside its teacher and real data: the numbers of `fdistill evaluate`, in `.report`.

    A student of captions that can be read from pictures is measured as of `evaluate_captions`.

    Args:
        model: as `fdistill.load` or `fdistill.distill` gives it.
        data: real samples; None for those that the model was trained on.
        teacher: what it was distilled from, a model, a path or a name; None for the one that it remembers, if that is
            still there, else none.
        n, seed, repeats, bootstrap: as of `evaluate_models`; of captions n and seed alone.

    Raises:
        ValueError: as of `evaluate_models`, or where the model does not say what it was trained on.
    """
    real = remembered_data(require_model(model).facts) if data is None else require_data(data)
    real, teacher = real.in_pixels(), remembered_teacher(model.facts) if teacher is None else teacher
    if isinstance(teacher, GenerativeModel):
        source: Source | None = ModelSource(teacher)
    else:
        source = None if teacher is None else open_source(teacher)
    if takes_captions(model, real):
        if repeats is not None or bootstrap is not None:
            raise ValueError("a report on captions has draws of its own: leave repeats and bootstrap out")
        return evaluate_captions(model, caption_teacher(source), cast(CaptionedDigits, real), n, seed)
    extractor = default_extractor(real.sample_shape, real.num_classes).keep_learned()
    return evaluate_models(ModelSource(model), source, real, n, seed, repeats, bootstrap, extractor)


def remembered_teacher(facts: dict[str, Any]) -> str | None:
    """The path or name of the teacher that a model with these facts was distilled from, if that is still there."""
    found = facts.get("teacher")
    return found if isinstance(found, str) and known_checkpoint(found).exists() else None


def usual_repeats(n: int) -> int:
    """Draws of n samples where nobody asked for another number: 4, or as many as make 10,000 samples together."""
    return max(1, min(USUAL_REPEATS, DRAWN // n))


def samples_per_second(source: Source, n: int, repeats: int = 3) -> float:
    """Median over `repeats` draws of n samples but at most 500, after one of 50 that does not count.

    Where that one takes more than a second, another of 50 counts alone.
    """
    few, many = min(n, FEW_TIMED), min(n, TIMED)
    slow = _seconds_of_draw(source, few) > LONG
    times = [_seconds_of_draw(source, few if slow else many) for _ in range(1 if slow else repeats)]
    return (few if slow else many) / statistics.median(times)


def _seconds_of_draw(source: Source, n: int) -> float:
    labels, started = source.labels(n, 0), time.perf_counter()
    source.draw(n, 0, labels)
    return time.perf_counter() - started


def _share_noise(student: Source, teacher: Source | None) -> bool:
    """Whether sample i of the one comes from the same latents and class as sample i of the other."""
    if not isinstance(student, ModelSource) or not isinstance(teacher, ModelSource):
        return False
    return student.num_classes == teacher.num_classes


def _check(sources: dict[str, Source], data: GenerativeDataModule, n: int, repeats: int) -> None:
    counts = len(data.held_out_samples), len(data.train_samples)
    most = min(counts)
    if most < LEAST_FOR_INTERVALS:
        raise ValueError(
            f"intervals and density need {LEAST_FOR_INTERVALS} held-out samples and as many training ones: got "
            f"{counts[0]} and {counts[1]}; give more data, or hold more of it out"
        )
    if not LEAST_FOR_INTERVALS <= n <= most:
        raise ValueError(
            f"n samples are compared with n held-out real ones, and so are n training ones: "
            f"expected {LEAST_FOR_INTERVALS} <= n <= {most}, got {n}"
        )
    if repeats < 1:
        raise ValueError(f"repeats is at least 1: got {repeats}")
    for name, source in sources.items():
        check_fits(name, source, data)


def check_fits(name: str, source: Source, data: GenerativeDataModule) -> None:
    """Raises ValueError where samples of a source cannot be compared with the data."""
    if isinstance(source, ModelSource) and source.model.denoiser.takes and not source.num_classes:
        raise ValueError(
            f"a report compares samples of classes, or of captions of CaptionedDigits: the {name} takes "
            f"{declared(source.model.denoiser.takes)}; sample it with fdistill sample --prompt"
        )
    if source.sample_shape != tuple(data.sample_shape) or source.num_classes not in (0, data.num_classes):
        raise ValueError(
            f"the {name} makes samples {source.sample_shape} of {source.num_classes} classes, the data has "
            f"{tuple(data.sample_shape)} and {data.num_classes}: give the data it was trained on"
        )


def _facts(comparison: HeldOutComparison, sources: dict[str, Source], repeats: int) -> dict[str, Any]:
    """How the numbers were made, and how fast the sources are."""
    generating = {name: source for name, source in sources.items() if source.evaluations is not None}
    speeds = {name: samples_per_second(source, comparison.n) for name, source in generating.items()}
    return {
        "held_out": comparison.held_out(),
        "judged_modes": comparison.judged_modes(),
        "n": comparison.n,
        "repeats": repeats,
        "seed": comparison.seed,
        "features": comparison.extractor.name,
        "training_samples_compared": [len(comparison.compared), len(comparison.data.train_samples)],
        "data": comparison.data.spec(),
        "samples_per_second": speeds,
        "speedup": speeds["student"] / speeds["teacher"] if len(speeds) == 2 else None,
        "student_evaluations": sources["student"].evaluations,
        "teacher_evaluations": sources["teacher"].evaluations if "teacher" in sources else None,
        **{f"{name}_facts": source.facts for name, source in sources.items()},
    }


def _seconds(sources: dict[str, Source], started: float) -> dict[str, float]:
    spent = {f"{name} training": source.facts.get("train_seconds") for name, source in sources.items()}
    return {name: value for name, value in spent.items() if value} | {
        "evaluation": round(time.perf_counter() - started, 1)
    }
