"""Generators beside real data at equal n: one reference, one set of classes, one pass of features.

A run compares with training samples, a report with held-out ones (`HeldOutComparison`): a checkpoint that was chosen by
what its run measured has then not seen what the report judges it by.
"""

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from torch import Tensor

from fdistill.core.distributed import gather_rows, same_on_all_ranks
from fdistill.core.random import generator_for
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor, compared_rows
from fdistill.evaluation.metrics import FeatureMetric
from fdistill.evaluation.samples import Samples, null_values, numbers, read_samples
from fdistill.sampling.generator import GenerativeModel

LEAST = 20  # samples on each side of a run's comparison, below which no metric means anything


class Comparison:
    """One feature space for everything that is compared; what real samples it is compared with, a subclass chooses.

    Attributes:
        compared: indices [m] of the training samples that copies are looked for among.
        classes: of the training split, int64; None where the data has none.
    """

    def __init__(self, data: GenerativeDataModule, extractor: FeatureExtractor, seed: int) -> None:
        """Args:
        data: real samples; the images of latents.
        extractor: prepared here, on the training split.
        seed: of latents, of the choice of the reference, and of the extractor's preparation.
        """
        train = data.train_samples
        self.data, self.extractor, self.seed, self.compared = data, extractor, seed, compared_rows(train)
        self.classes = train.labels if data.num_classes > 1 else None
        extractor.prepare(train, self.classes, data.num_classes, seed)
        same_on_all_ranks(extractor)  # training on a GPU differs a little from rank to rank

    @cached_property
    def training(self) -> Tensor:
        """Features [m, d] of the training samples that copies are looked for among."""
        return self.extractor.extract(self.data.train_samples, keep=True, rows=self.compared)

    def read(self, name: str, x: Tensor, labels: Tensor | None, keep: bool = False) -> Samples:
        """Read samples [n, ...] once; an error says whose they are."""
        return read_samples(self.data, self.extractor, name, x, labels, keep)


class TrainingComparison(Comparison):
    """Compares generators with n training samples, n of the others being the floor.

    Attributes:
        reference: n training samples.
        n: samples of each generator, and of the reference: `num_samples`, or half of the training split where that is
            smaller, so that the floor and the null have the same n.
        other_half: n further training samples: the floor.
    """

    def __init__(
        self,
        data: GenerativeDataModule,
        extractor: FeatureExtractor,
        metrics: Mapping[str, FeatureMetric],
        num_samples: int,
        seed: int,
    ) -> None:
        """Args:
        data, extractor, seed: as of `Comparison`; of latents, the images that the data decodes are compared.
        metrics: by name; the name is what a metric of a single number is called.
        num_samples: see n.

        Raises:
            ValueError: where there are too few real samples, or none that differ.
        """
        self.n, self.metrics, self._decoder = compared_samples(data, num_samples), dict(metrics), data.decoder
        super().__init__(data.in_pixels(extractor.device), extractor, seed)
        train, labels = self.data.train_samples, self.classes
        chosen = torch.randperm(len(train), generator=generator_for(seed))[: 2 * self.n]
        classes = None if labels is None else labels[chosen]
        self._pool = self.read("training samples", train.rows(chosen).x, classes, keep=True)
        # every other sample of each class: generators are asked for the reference's classes, so the floor has them too
        order = torch.arange(2 * self.n) if classes is None else classes.argsort(stable=True)
        shuffled = torch.randperm(self.n, generator=generator_for(seed, 2))
        self.reference, self.other_half = (self._pool[order[part::2][shuffled]] for part in (0, 1))

    @property
    def labels(self) -> Tensor:
        """The classes asked of every generator, int64 [n]: those of the reference."""
        wanted = self.reference.wanted
        return torch.zeros(self.n, dtype=torch.int64) if wanted is None else wanted.cpu()

    def draw(self, model: GenerativeModel, rank: int = 0, world_size: int = 1) -> Samples:
        """Read the n samples of a model from the fixed latents and classes; each rank makes its share, all get all."""
        mine = torch.arange(self.n)[rank::world_size]
        wanted = self.labels if model.num_classes else None
        samples = model.sample(model.noise(self.n, self.seed)[mine], None if wanted is None else wanted[mine])
        if tuple(samples.shape[1:]) != tuple(self.data.sample_shape):  # latents, and the data's images are compared
            decoder = model.decoder or self._decoder
            samples = samples if decoder is None else decoder.to(self.extractor.device)(samples)
        part = self.read("generated samples", samples, None if wanted is None else wanted[mine])
        if world_size == 1:
            return part
        order = torch.cat([torch.arange(self.n)[r::world_size] for r in range(world_size)]).argsort()
        classes = (None if kept is None else gather_rows(kept) for kept in (part.modes, part.wanted))
        return Samples(gather_rows(part.features), *classes)[order]

    def measure(self, generated: Samples, teacher: Samples | None = None) -> dict[str, float]:
        """Every metric of n samples against the reference; `teacher` for the metrics that compare pairs.

        Raises:
            ValueError: where a metric cannot be computed; two metrics of one name.
        """
        pairs = None if teacher is None else teacher.features
        found = numbers(self.metrics, generated, self.reference, self._training(), pairs)
        return _known(found | {"accuracy": generated.accuracy})

    def floor(self) -> dict[str, float]:
        """What n other real samples score; copies of training samples are counted among held-out ones."""
        about_copies = {name for name, metric in self.metrics.items() if metric.reads == "training"}
        others = {name: metric for name, metric in self.metrics.items() if name not in about_copies}
        found = numbers(others, self.other_half, self.reference)
        if about_copies:
            held_out = self.extractor.extract(self.data.held_out_samples.first(self.n).x, keep=True)
            copies = {name: self.metrics[name] for name in about_copies}
            found |= numbers(copies, Samples(held_out), self.reference, self._training())
        return _known(found)

    def null(self, names: Collection[str], num_splits: int) -> dict[str, Tensor]:
        """Values [num_splits] of the named numbers on random half-splits of the 2n real samples: n against n."""
        return null_values(self.metrics, self._pool, names, num_splits, generator_for(self.seed, 1))

    def missing_modes(self, generated: Samples) -> list[int]:
        """Modes that the reference has and the generated samples lack."""
        if generated.modes is None or self.reference.modes is None:
            return []
        here, there = set(generated.modes.tolist()), set(self.reference.modes.tolist())
        return sorted(there - here - {-1})

    def _training(self) -> Tensor | None:
        return self.training if any(metric.reads == "training" for metric in self.metrics.values()) else None


def compared_samples(data: GenerativeDataModule, num_samples: int) -> int:
    """n of a run's comparison of `num_samples` with this data.

    Raises:
        ValueError: where that is too few.
    """
    n = min(num_samples, len(data.train_samples) // 2)
    if n < LEAST:
        raise ValueError(
            f"diversity compares halves of the training split: expected at least {LEAST} samples in each, got {n}; "
            "use more data or a larger num_samples"
        )
    return n


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}
