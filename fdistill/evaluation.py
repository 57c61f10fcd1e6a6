"""Student beside teacher beside real data: the same numbers, the same n, several draws, and what a picture shows."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.collapse import WATCHED, bands, half_splits
from fdistill.data import GenerativeDataModule
from fdistill.features import FeatureExtractor, compared_rows, default_extractor
from fdistill.metrics import memorized_fraction, nearest, vendi_score
from fdistill.metrics.vendi_spectrum import vendi_spectrum
from fdistill.random_streams import fold_seed, generator_for
from fdistill.report import average_rows, compare, intervals, joined, measure, per_class, per_class_gaussian, verdict
from fdistill.report.intervals import LEAST_FOR_INTERVALS, check_splits
from fdistill.report.rows import Samples
from fdistill.sources import ModelSource, Source

SPLITS = 10  # pairs of real halves, of which the bands are made
MOST_IN_BANDS = 5000  # samples of such a half; more would make the bands narrower by little, and take long
DRAWN = 20_000  # samples of each row in all draws together, where nobody asked for a number of draws
USUAL_REPEATS = 4  # at most
TIMED = 500  # samples at once, whose speed is measured
LONG = 5.0  # seconds of one draw, which is then not repeated
LEAST_IN_MODE = 5  # reference samples, for a mode without generated ones to be missing rather than unlucky
LEAST_TO_BE_RARE = 20  # reference samples, for one with some
RARE = 0.25  # of the samples that the reference has
MOST_CLASSES = 40  # that are told apart
MOST_COPIES = 20
SHOWN_IMAGES, SHOWN_POINTS = 50, 2000  # of each row in a picture


@dataclass
class Copies:
    """The samples that lie nearest to a training sample, the nearest first.

    Attributes:
        generated: [c, ...].
        training: the nearest training sample of each [c, ...].
        ratio: its distance over that of the second nearest [c]; below 1/3 it is a copy.
    """

    generated: Tensor
    training: Tensor
    ratio: Tensor


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
    n: int,
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
        n: samples of each row, >= 12.
        seed: of all draws and of the features.
        repeats: draws that the numbers are means of, >= 1; 4, or 20,000 / n where that is fewer, where None.
        bootstrap: splits into halves that intervals are made of; as `intervals` takes `splits`.
        extractor: prepared here; the default one where not given.

    Raises:
        ValueError: if n is larger than a split or a fixed set, a source does not fit the data, or its samples are
            broken.
    """
    started, data = time.perf_counter(), data.in_pixels()
    repeats = usual_repeats(max(n, 1)) if repeats is None else repeats
    sources = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    _check(sources, data, n, repeats)
    check_splits(bootstrap)
    bench = _Bench(data, extractor or default_extractor(data.sample_shape, data.num_classes), n, seed)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("floor", *sources, "class_gaussian")}
    modes: dict[str, list[Tensor]] = {name: [] for name in rows}
    first: dict[str, Samples] = {}
    shown: dict[str, Tensor] = {}
    copies: Copies | None = None
    for repeat in tqdm(range(repeats), desc="Evaluation", unit="draw"):
        drawn = {}
        for name, (x, labels) in bench.draws(sources, repeat):
            drawn[name] = bench.read(name, x, labels, keep=name == "floor")
            if repeat == 0:
                shown[name] = x[: SHOWN_IMAGES if x.ndim == 4 else SHOWN_POINTS].clone()
                copies = bench.copies(x, drawn[name]) if name == "student" else copies
        for name, samples in drawn.items():
            pairs = drawn["teacher"].features if name == "student" and _share_noise(student, teacher) else None
            training = None if name == "floor" else bench.training
            rows[name].append(measure(samples, bench.reference, data.num_modes, training, pairs))
            modes[name] += [] if samples.modes is None else [samples.modes]
        first = first or drawn
    report = {name: average_rows(found) for name, found in rows.items()}
    for name, samples in tqdm(first.items(), desc="Intervals", unit="row", disable=bootstrap == 0):
        report[name] |= bench.details(report[name], samples, modes[name], bootstrap)
    report |= _facts(bench, sources, n, seed, repeats) | {"bands": bench.bands(first["floor"])}
    report["verdict"] = verdict(report)
    report["seconds"] = _seconds(sources, started)
    spectra = {name: vendi_spectrum(first[name].features).cpu() for name in ("floor", *sources)}
    return Evaluation(report, shown, spectra, copies)


class _Bench:
    """The real side of a comparison.

    Attributes:
        labels: of the reference, int64 [n]; zeros where the data has no classes.
        compared: indices [m] of the training samples that copies are looked for among.
        training: their features [m, d].
        gaussian: draws samples of the classes asked for from a Gaussian of each.
        reference: n held-out samples.
    """

    def __init__(self, data: GenerativeDataModule, extractor: FeatureExtractor, n: int, seed: int) -> None:
        train, held_out = data.train_samples, data.held_out_samples
        self.data, self.extractor, self.n, self.seed = data, extractor, n, seed
        labels = train.labels if data.num_classes > 1 else None
        extractor.prepare(train, labels, data.num_classes, seed)
        self.gaussian = per_class_gaussian(train, labels, data.num_classes)
        self.compared = compared_rows(train)
        self.training = extractor.extract(train, keep=True, rows=self.compared)
        x, self.labels = held_out.rows(torch.randperm(len(held_out), generator=generator_for(seed))[:n])
        self.reference = self.read("reference", x, self.labels, keep=True)

    def read(self, name: str, x: Tensor, labels: Tensor | None, keep: bool = False) -> Samples:
        """Read samples [n, ...] once; an error says whose they are."""
        return read_samples(self.data, self.extractor, name.replace("_", " "), x, labels, keep)

    def draws(self, sources: Mapping[str, Source], repeat: int) -> Iterator[tuple[str, tuple[Tensor, Tensor | None]]]:
        """Every row's name with its n samples and their labels, one row after the other.

        Sources make the reference's classes where they can be asked for them.
        """
        train, seed = self.data.train_samples, fold_seed(self.seed, repeat) % 2**32
        yield "floor", train.rows(torch.randperm(len(train), generator=generator_for(self.seed, repeat))[: self.n])
        for name, source in sources.items():
            labels = source.labels(self.n, seed, self.labels)
            yield name, (source.draw(self.n, seed, labels), labels)
        yield "class_gaussian", (self.gaussian(self.labels, generator_for(self.seed, repeat)), self.labels)

    def details(
        self, row: dict[str, Any], samples: Samples, modes: list[Tensor], bootstrap: int | None
    ) -> dict[str, dict[str, Any] | list[int]]:
        """What one row holds beside its numbers: intervals, modes that are missed, precision and recall by class."""
        found: dict[str, Any] = {
            "intervals": intervals(row, samples, self.reference, self.data.num_modes, bootstrap, self.seed)
        }
        if modes and self.reference.modes is not None:
            made = self._counts(torch.cat(modes)).double() / len(modes)
            there = self._counts(self.reference.modes)
            missing = (made == 0) & (there >= LEAST_IN_MODE)
            rare = (made < RARE * there) & (there >= LEAST_TO_BE_RARE) & ~missing
            found |= {"missing_modes": _numbers(missing), "rare_modes": _numbers(rare)}
        if 1 < self.data.num_classes <= MOST_CLASSES and (samples.wanted is not None or samples.modes is not None):
            found["per_class"] = per_class(samples, self.reference, self.data.num_classes)
        return found

    def judged_modes(self) -> int:
        """How many modes hold enough of the reference to be missed; 0 where nobody can tell."""
        modes = self.reference.modes
        return 0 if modes is None else int((self._counts(modes) >= LEAST_IN_MODE).sum())

    def _counts(self, modes: Tensor) -> Tensor:
        return modes[modes >= 0].bincount(minlength=self.data.num_modes).cpu()

    def bands(self, floor: Samples) -> dict[str, list[float | None]]:
        """The collapse alarm's bands, of n real samples (at most 5,000) against others; None for an open end."""
        pool = joined(self.reference, floor)
        splits = half_splits(len(pool), SPLITS, generator_for(self.seed, SPLITS), MOST_IN_BANDS)
        null = [compare(pool[a], pool[b], self.data.num_modes) for a, b in splits]
        known = [name for name in WATCHED if all(values[name] is not None for values in null)]
        found = bands({name: torch.tensor([values[name] for values in null]) for name in known})
        return {
            name: [edge if math.isfinite(edge) else None for edge in (band.low, band.high)]
            for name, band in found.items()
        }

    def held_out(self) -> dict[str, float | None]:
        """What the reference itself has: its Vendi score, how well its classes are read, and copies by chance."""
        modes, wanted = self.reference.modes, self.reference.wanted
        return {
            "vendi": float(vendi_score(self.reference.features)),
            "accuracy": None if modes is None or wanted is None else float((modes == wanted).double().mean()),
            "memorized_fraction": float(memorized_fraction(self.reference.features, self.training)),
        }

    def copies(self, x: Tensor, samples: Samples) -> Copies:
        """The samples x [n, ...] that lie nearest to a training sample."""
        near = nearest(samples.features, self.training, k=2)
        ratio = (near.distances[:, 0] / near.distances[:, 1].clamp(min=torch.finfo(torch.float64).tiny)).cpu()
        order = ratio.argsort(stable=True)[:MOST_COPIES]
        training = self.data.train_samples.rows(self.compared[near.indices[:, 0].cpu()[order]]).x
        return Copies(x[order], training, ratio[order])


def read_samples(
    data: GenerativeDataModule,
    extractor: FeatureExtractor,
    name: str,
    x: Tensor,
    labels: Tensor | None,
    keep: bool = False,
) -> Samples:
    """What the metrics read of samples [n, ...] of some data, by a prepared extractor; an error says whose they are.

    The features of real ones may be kept, see `FeatureExtractor.extract`.
    """
    try:
        features = extractor.extract(x, keep=keep)
        modes = data.read_modes(x)  # its own oracle, where it has one, reads better than any features
        modes = extractor.classify(features) if modes is None else modes
    except ValueError as error:
        raise ValueError(f"the {name}: {error}") from error
    modes, labels = (None if kept is None else kept.to(features.device) for kept in (modes, labels))
    return Samples(features, modes, labels if data.num_classes > 1 else None)


def _numbers(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()


def usual_repeats(n: int) -> int:
    """Draws of n samples where nobody asked for another number: 4, or as many as make 20,000 samples together."""
    return max(1, min(USUAL_REPEATS, DRAWN // n))


def samples_per_second(source: Source, n: int, repeats: int = 3) -> float:
    """Median over `repeats` draws of n samples but at most 500, after one that does not count.

    That one alone counts where it takes more than five seconds.
    """
    n = min(n, TIMED)
    labels = source.labels(n, 0)
    times: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        source.draw(n, 0, labels)
        times.append(time.perf_counter() - started)
        if times[0] > LONG:
            break
    return n / statistics.median(times[1:] or times)


def _share_noise(student: Source, teacher: Source | None) -> bool:
    """Whether sample i of the one comes from the same latents and class as sample i of the other."""
    both = isinstance(student, ModelSource) and isinstance(teacher, ModelSource)
    return both and student.num_classes == teacher.num_classes


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
    if source.sample_shape != tuple(data.sample_shape) or source.num_classes not in (0, data.num_classes):
        raise ValueError(
            f"the {name} makes samples {source.sample_shape} of {source.num_classes} classes, the data has "
            f"{tuple(data.sample_shape)} and {data.num_classes}: give the data it was trained on"
        )


def _facts(bench: _Bench, sources: dict[str, Source], n: int, seed: int, repeats: int) -> dict[str, Any]:
    """How the numbers were made, and how fast the sources are."""
    generating = {name: source for name, source in sources.items() if source.evaluations is not None}
    speeds = {name: samples_per_second(source, n) for name, source in generating.items()}
    return {
        "held_out": bench.held_out(),
        "judged_modes": bench.judged_modes(),
        "n": n,
        "repeats": repeats,
        "seed": seed,
        "features": bench.extractor.name,
        "training_samples_compared": [len(bench.compared), len(bench.data.train_samples)],
        "data": bench.data.spec(),
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
