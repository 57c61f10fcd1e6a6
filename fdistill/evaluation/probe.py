"""Measuring a generator beside its data at equal n: one reference, one set of latents, one pass of features."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fdistill.core.distributed import gather_rows, same_on_all_ranks
from fdistill.core.random import generator_for
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.collapse_alarm import half_splits
from fdistill.evaluation.features import FeatureExtractor, compared_rows
from fdistill.evaluation.metrics import FeatureMetric
from fdistill.sampling.generator import GenerativeModel

LEAST = 20  # samples on each side, below which no metric here means anything


@dataclass
class Rows:
    """What the metrics read of n samples.

    Attributes:
        features: [n, d].
        modes: class or mode read from each sample, int64 [n], -1 for none; None where nobody can tell.
        wanted: class each was asked to be, int64 [n]; None where unconditional.
    """

    features: Tensor
    modes: Tensor | None
    wanted: Tensor | None

    def __getitem__(self, index: Tensor) -> "Rows":
        index = index.to(self.features.device)
        modes, wanted = (None if kept is None else kept[index] for kept in (self.modes, self.wanted))
        return Rows(self.features[index], modes, wanted)

    def __len__(self) -> int:
        return len(self.features)


def compared_samples(data: GenerativeDataModule, num_samples: int) -> int:
    """n of a comparison of `num_samples` with this data.

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


class DiversityProbe:
    """Compares generators with n real training samples, n of the others being the floor.

    Attributes:
        n: samples of each generator, and of the reference: `num_samples`, or half of the training split where that is
            smaller, so that the floor and the null have the same n.
        reference: n training samples.
        other_half: n further ones: the floor.
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
        data: its training split is the reference.
        extractor: prepared here, on the training split.
        metrics: by name; the name is what a metric of a single number is called.
        num_samples: see n.
        seed: of the latents, of the choice of the reference, and of the extractor's preparation.

        Raises:
            ValueError: where there are too few real samples, or none that differ.
        """
        self.n, self._decoder = compared_samples(data, num_samples), data.decoder
        data = data.in_pixels(extractor.device)
        train = data.train_samples
        self.data, self.extractor, self.metrics, self.seed = data, extractor, dict(metrics), seed
        labels = train.labels if data.num_classes > 1 else None
        extractor.prepare(train, labels, data.num_classes, seed)
        same_on_all_ranks(extractor)  # training on a GPU differs a little from rank to rank
        chosen = torch.randperm(len(train), generator=generator_for(seed))[: 2 * self.n]
        self._pool = self.rows(train.rows(chosen).x, None if labels is None else labels[chosen], keep=True)
        # every other sample of each class: generators are asked for the reference's classes, so the floor has them too
        order = torch.arange(2 * self.n) if labels is None else labels[chosen].argsort(stable=True)
        shuffled = torch.randperm(self.n, generator=generator_for(seed, 2))
        self.reference, self.other_half = (self._pool[order[part::2][shuffled]] for part in (0, 1))
        self._training = self._held_out = None
        if any(metric.reads == "training" for metric in self.metrics.values()):
            self._training = extractor.extract(train, keep=True, rows=compared_rows(train))
            self._held_out = extractor.extract(data.held_out_samples.first(self.n).x, keep=True)

    @property
    def labels(self) -> Tensor:
        """The classes asked of every generator, int64 [n]: those of the reference."""
        wanted = self.reference.wanted
        return torch.zeros(self.n, dtype=torch.int64) if wanted is None else wanted.cpu()

    def rows(self, samples: Tensor, wanted: Tensor | None, keep: bool = False) -> Rows:
        """Read samples [m, ...] once; the features of real ones may be kept, see `FeatureExtractor.extract`."""
        features = self.extractor.extract(samples, keep=keep)
        modes = self.data.read_modes(samples)  # its own oracle, where it has one, reads better than any features
        if modes is None:
            modes = self.extractor.classify(features)
        to = features.device
        return Rows(features, *(None if kept is None else kept.to(to) for kept in (modes, wanted)))

    def draw(self, model: GenerativeModel, rank: int = 0, world_size: int = 1) -> Rows:
        """Read the n samples of a model from the fixed latents and classes; each rank makes its share, all get all."""
        mine = torch.arange(self.n)[rank::world_size]
        wanted = self.labels if model.num_classes else None
        samples = model.sample(model.noise(self.n, self.seed)[mine], None if wanted is None else wanted[mine])
        if tuple(samples.shape[1:]) != tuple(self.data.sample_shape):  # latents, and the data's images are compared
            decoder = model.decoder or self._decoder
            samples = samples if decoder is None else decoder.to(self.extractor.device)(samples)
        part = self.rows(samples, None if wanted is None else wanted[mine])
        if world_size == 1:
            return part
        order = torch.cat([torch.arange(self.n)[r::world_size] for r in range(world_size)]).argsort()
        features = gather_rows(part.features)
        classes = (None if kept is None else gather_rows(kept) for kept in (part.modes, part.wanted))
        return Rows(features, *classes)[order]

    def measure(self, generated: Rows, teacher: Rows | None = None) -> dict[str, float]:
        """Every metric of n samples against the reference; `teacher` for the metrics that compare pairs.

        Raises:
            ValueError: where a metric cannot be computed, naming it; two metrics of one name.
        """
        values = _flat(self._by_metric(generated, self.reference, teacher))
        if generated.modes is not None and generated.wanted is not None:
            values["accuracy"] = float((generated.modes == generated.wanted).double().mean())
        return values

    def floor(self) -> dict[str, float]:
        """What n other real samples score; copies of training samples are counted among held-out ones."""
        return _flat(self._by_metric(self.other_half, self.reference))

    def null(self, names: Collection[str], num_splits: int) -> dict[str, Tensor]:
        """Values [num_splits] of the named metrics on random half-splits of the 2n real samples: n against n."""
        needed = {
            key: self.metrics[key]
            for key, found in self._by_metric(self.other_half, self.reference).items()
            if found.keys() & set(names) and self.metrics[key].reads in ("features", "modes")
        }
        splits = half_splits(len(self._pool), num_splits, generator_for(self.seed, 1))
        values = [_flat(self._by_metric(self._pool[a], self._pool[b], metrics=needed)) for a, b in splits]
        return {name: torch.tensor([one[name] for one in values]) for name in names if name in values[0]}

    def missing_modes(self, generated: Rows) -> list[int]:
        """Modes that the reference has and the generated samples lack."""
        if generated.modes is None or self.reference.modes is None:
            return []
        here, there = set(generated.modes.tolist()), set(self.reference.modes.tolist())
        return sorted(there - here - {-1})

    def _by_metric(
        self,
        generated: Rows,
        real: Rows,
        teacher: Rows | None = None,
        metrics: Mapping[str, FeatureMetric] | None = None,
    ) -> dict[str, dict[str, float]]:
        """The numbers of every metric whose two sides are there."""
        is_generated = generated is not self.other_half
        found = {}
        for key, metric in (self.metrics if metrics is None else metrics).items():
            ours, theirs = {
                "features": (generated.features, real.features),
                "modes": (generated.modes, real.modes),
                "training": (generated.features if is_generated else self._held_out, self._training),
                "teacher": (generated.features, None if teacher is None else teacher.features),
            }[metric.reads]
            if ours is None or theirs is None:
                continue
            value = metric.of(ours, theirs)
            named = value if isinstance(value, dict) else {key: value}
            found[key] = {name: float(number) for name, number in named.items()}
        return found


def _flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All numbers by name.

    Raises:
        ValueError: where two metrics give numbers of one name.
    """
    values: dict[str, float] = {}
    for key, numbers in found.items():
        twice = sorted(numbers.keys() & values.keys())
        if twice:
            raise ValueError(
                f"metrics have numbers of different names: expected one of each, got {twice} again from {key}"
            )
        values |= numbers
    return values
