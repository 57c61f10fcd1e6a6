"""A report's comparison with held-out samples: each row's samples drawn and read, and what stands beside numbers."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdistill.core.random import fold_seed, generator_for
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.collapse_alarm import WATCHED, bands
from fdistill.evaluation.comparison import Comparison
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.metrics import memorized_fraction, nearest, vendi_score
from fdistill.evaluation.metrics.suite import report_metrics
from fdistill.evaluation.report.class_gaussian import per_class_gaussian
from fdistill.evaluation.report.intervals import intervals
from fdistill.evaluation.report.rows import per_class
from fdistill.evaluation.samples import Samples, joined, null_values
from fdistill.evaluation.sources import ModelSource, Source
from fdistill.sampling.generator import GenerativeModel

SPLITS = 10  # pairs of real halves, of which the bands are made
MOST_IN_BANDS = 5000  # samples of such a half; more would make the bands narrower by little, and take long
LEAST_IN_MODE = 5  # reference samples, for a mode without generated ones to be missing rather than unlucky
LEAST_TO_BE_RARE = 20  # reference samples, for one with some
RARE = 0.25  # of the samples that the reference has
MOST_CLASSES = 40  # that are told apart
MOST_COPIES = 20
OF_THE_STREAM = ("batch_size", "seed", "num_workers")  # of training, which say nothing of the samples
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


class HeldOutComparison(Comparison):
    """Compares what sources make with n held-out samples; n training samples at each draw are the floor.

    Attributes:
        reference: n held-out samples.
        labels: of the reference, int64 [n]; zeros where the data has no classes.
        gaussian: draws samples of the classes asked for from a Gaussian of each.
    """

    def __init__(self, data: GenerativeDataModule, extractor: FeatureExtractor, n: int, seed: int) -> None:
        super().__init__(data, extractor, seed)
        self.n, held_out = n, data.held_out_samples
        self.gaussian = per_class_gaussian(data.train_samples, self.classes, data.num_classes)
        x, self.labels, _ = held_out.rows(torch.randperm(len(held_out), generator=generator_for(seed))[:n])
        self.reference = self.read("reference", x, self.labels, keep=True)

    def draws(self, sources: Mapping[str, Source], repeat: int) -> Iterator[tuple[str, Tensor, Samples]]:
        """Every row's name with its n samples and what is read of them, one row after the other.

        Sources make the reference's classes where they can be asked for them. Of the teacher there may be only the
        samples that a picture shows: what was read of it is kept where the extractor keeps what it learned.
        """
        train, seed = self.data.train_samples, fold_seed(self.seed, repeat) % 2**32
        x, labels, _ = train.rows(torch.randperm(len(train), generator=generator_for(self.seed, repeat))[: self.n])
        yield "floor", x, self.read("floor", x, labels, keep=True)
        for name, source in sources.items():
            asked = source.labels(self.n, seed, self.labels)
            make = functools.partial(self._draw, name, source, seed, asked)
            if name == "teacher" and isinstance(source, ModelSource):
                yield name, *self._kept(source.model, seed, asked, make)
            else:
                yield name, *make()
        x = self.gaussian(self.labels, generator_for(self.seed, repeat))
        yield "class_gaussian", x, self.read("class gaussian", x, self.labels)

    def _draw(self, name: str, source: Source, seed: int, labels: Tensor | None) -> tuple[Tensor, Samples]:
        x = source.draw(self.n, seed, labels)
        return x, self.read(name, x, labels)

    def _kept(
        self, model: GenerativeModel, seed: int, labels: Tensor | None, make: Callable[[], tuple[Tensor, Samples]]
    ) -> tuple[Tensor, Samples]:
        """What `make` gives, its samples those that a picture shows; made once for each teacher, n and seed."""

        def tensors() -> dict[str, Tensor]:
            x, samples = make()
            modes = {} if samples.modes is None else {"modes": samples.modes}
            return {"shown": first_shown(x), "features": samples.features} | modes

        parts = [model.denoiser, model.guidance, model.sampler, model.sigmas, model.decoder, model.autocast]
        data = {name: value for name, value in self.data.spec()["init_args"].items() if name not in OF_THE_STREAM}
        inputs = [type(model), parts, type(self.data), data, self.n, seed, labels]
        found = self.extractor.kept("teacher's draw", inputs, tensors)
        classes = (found.get("modes"), labels if self.data.num_classes > 1 else None)
        device = self.reference.features.device
        read = (None if tensor is None else tensor.to(device) for tensor in classes)
        return found["shown"], Samples(found["features"].to(device), *read)

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
        pool, metrics = joined(self.reference, floor), report_metrics(self.data.num_modes)
        null = null_values(metrics, pool, WATCHED, SPLITS, generator_for(self.seed, SPLITS), MOST_IN_BANDS)
        return {
            name: [edge if math.isfinite(edge) else None for edge in (band.low, band.high)]
            for name, band in bands(null).items()
        }

    def held_out(self) -> dict[str, float | None]:
        """What the reference itself has: its Vendi score, how well its classes are read, and copies by chance."""
        return {
            "vendi": float(vendi_score(self.reference.features)),
            "accuracy": self.reference.accuracy,
            "memorized_fraction": float(memorized_fraction(self.reference.features, self.training)),
        }

    def copies(self, x: Tensor, samples: Samples) -> Copies:
        """The samples x [n, ...] that lie nearest to a training sample."""
        near = nearest(samples.features, self.training, k=2)
        ratio = (near.distances[:, 0] / near.distances[:, 1].clamp(min=torch.finfo(torch.float64).tiny)).cpu()
        order = ratio.argsort(stable=True)[:MOST_COPIES]
        training = self.data.train_samples.rows(self.compared[near.indices[:, 0].cpu()[order]]).x
        return Copies(x[order], training, ratio[order])


def _numbers(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()


def first_shown(x: Tensor) -> Tensor:
    """Of samples [n, ...] those that a picture shows: 50 images or 2,000 points."""
    return x[: SHOWN_IMAGES if x.ndim == 4 else SHOWN_POINTS].clone()
