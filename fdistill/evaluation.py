"""Student beside teacher beside real data: the same numbers, the same n, several draws, and what a picture shows."""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.collapse import WATCHED, bands, half_splits
from fdistill.data import GenerativeDataModule
from fdistill.features import FeatureExtractor, default_extractor
from fdistill.metrics import memorized_fraction, nearest, vendi_score
from fdistill.metrics.vendi_spectrum import vendi_spectrum
from fdistill.random_streams import fold_seed, generator_for
from fdistill.report import average_rows, compare, intervals, joined, measure, per_class, per_class_gaussian, verdict
from fdistill.report.intervals import LEAST_FOR_INTERVALS, check_splits
from fdistill.report.rows import Samples
from fdistill.sources import ModelSource, Source

SPLITS = 10  # pairs of real halves, of which the bands are made
LEAST_IN_MODE = 5  # reference samples, for a mode without generated ones to be missing rather than unlucky
LEAST_TO_BE_RARE = 20  # reference samples, for one with some
RARE = 0.25  # of the samples that the reference has
MOST_CLASSES = 40  # that are told apart
MOST_COPIES = 20


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
        samples: by row, [n, ...].
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
    repeats: int,
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
        repeats: draws that the numbers are means of, >= 1.
        bootstrap: splits into halves that intervals are made of; as `intervals` takes `splits`.
        extractor: prepared here; the default one where not given.

    Raises:
        ValueError: if n is larger than a split or a fixed set, a source does not fit the data, or its samples are
            broken.
    """
    started, data = time.perf_counter(), data.in_pixels()
    sources = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    _check(sources, data, n, repeats)
    check_splits(bootstrap)
    bench = _Bench(data, extractor or default_extractor(data.sample_shape, data.num_classes), n, seed)
    gaussian = per_class_gaussian(data.train_split.x, bench.training_labels, data.num_classes)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("floor", *sources, "class_gaussian")}
    modes: dict[str, list[Tensor]] = {name: [] for name in rows}
    first: dict[str, Samples] = {}
    for repeat in tqdm(range(repeats), desc="Evaluation", unit="draw"):
        drawn = {"floor": bench.floor(repeat)}
        for name, source in sources.items():
            drawn[name] = bench.draw(name, source, repeat)
        x = gaussian(bench.labels, generator_for(seed, repeat))
        drawn["class_gaussian"] = bench.read("class_gaussian", x, bench.labels)
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
    return Evaluation(report, {k: v.x for k, v in first.items()}, spectra, bench.copies(first["student"]))


class _Bench:
    """The real side of a comparison.

    Attributes:
        labels: of the reference, int64 [n]; zeros where the data has no classes.
        training: features of the training split [N, d].
        training_labels: int64 [N]; None where the data has no classes.
        reference: n held-out samples.
    """

    def __init__(self, data: GenerativeDataModule, extractor: FeatureExtractor, n: int, seed: int) -> None:
        train, held_out = data.train_split, data.held_out_split
        self.data, self.extractor, self.n, self.seed = data, extractor, n, seed
        self.training_labels = train.labels if data.num_classes > 1 else None
        extractor.prepare(train.x, self.training_labels, data.num_classes, seed)
        self.training = extractor.extract(train.x, keep=True)
        chosen = torch.randperm(len(held_out.x), generator=generator_for(seed))[:n]
        self.labels = held_out.labels[chosen]
        self.reference = self.read("reference", held_out.x[chosen], self.labels, keep=True)

    def read(self, name: str, x: Tensor, labels: Tensor | None, keep: bool = False) -> Samples:
        """Read samples [n, ...] once; an error says whose they are."""
        return read_samples(self.data, self.extractor, name.replace("_", " "), x, labels, keep)

    def floor(self, repeat: int) -> Samples:
        """n training samples of a draw."""
        train = self.data.train_split
        real = torch.randperm(len(train.x), generator=generator_for(self.seed, repeat))[: self.n]
        return self.read("floor", train.x[real], train.labels[real], keep=True)

    def draw(self, name: str, source: Source, repeat: int) -> Samples:
        """n samples of a source, of the reference's classes where it can be asked for them."""
        seed = fold_seed(self.seed, repeat) % 2**32
        labels = source.labels(self.n, seed, self.labels)
        return self.read(name, source.draw(self.n, seed, labels), labels)

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
        """The collapse alarm's bands, of n real samples against n others; None for an end that is open."""
        pool = joined(self.reference, floor)
        splits = half_splits(len(pool), SPLITS, generator_for(self.seed, SPLITS))
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

    def copies(self, samples: Samples) -> Copies:
        """The samples that lie nearest to a training sample."""
        near = nearest(samples.features, self.training, k=2)
        ratio = (near.distances[:, 0] / near.distances[:, 1].clamp(min=torch.finfo(torch.float64).tiny)).cpu()
        order = ratio.argsort(stable=True)[:MOST_COPIES]
        return Copies(samples.x[order], self.data.train_split.x[near.indices[:, 0].cpu()[order]], ratio[order])


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
    return Samples(x, features, modes, labels if data.num_classes > 1 else None)


def _numbers(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()


def samples_per_second(source: Source, n: int, repeats: int = 3) -> float:
    """Median over `repeats` draws of n samples, after one that does not count."""
    labels = source.labels(n, 0)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        source.draw(n, 0, labels)
        times.append(time.perf_counter() - started)
    return n / statistics.median(times[1:])


def _share_noise(student: Source, teacher: Source | None) -> bool:
    """Whether sample i of the one comes from the same latents and class as sample i of the other."""
    both = isinstance(student, ModelSource) and isinstance(teacher, ModelSource)
    return both and student.num_classes == teacher.num_classes


def _check(sources: dict[str, Source], data: GenerativeDataModule, n: int, repeats: int) -> None:
    most = min(len(data.held_out_split.x), len(data.train_split.x))
    if most < LEAST_FOR_INTERVALS:
        raise ValueError(
            f"intervals and density need {LEAST_FOR_INTERVALS} held-out samples and as many training ones: got "
            f"{len(data.held_out_split.x)} and {len(data.train_split.x)}; give more data, or hold more of it out"
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
