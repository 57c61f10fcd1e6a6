"""What the metrics read of samples, and every number of two sets of them: the one engine of runs and of reports."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fdistill.data import GenerativeDataModule
from fdistill.evaluation.collapse_alarm import half_splits
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.metrics import FeatureMetric
from fdistill.evaluation.metrics.blocks import NoValueError


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

    @property
    def accuracy(self) -> float | None:
        """Share of samples read as the class that they were asked to be; None where that cannot be told."""
        if self.modes is None or self.wanted is None:
            return None
        return float((self.modes == self.wanted).double().mean())

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


def numbers(
    metrics: Mapping[str, FeatureMetric],
    generated: Samples,
    real: Samples,
    training: Tensor | None = None,
    teacher: Tensor | None = None,
) -> dict[str, float | None]:
    """Every number of the metrics by name; None where it has no value, or what it reads is not there.

    Args:
        metrics: by name; the name is what a metric of a single number is called.
        generated: samples to judge.
        real: what they are compared with.
        training: features [m, d] of training samples, to look for copies of.
        teacher: features [n, d] of a teacher's samples from the same noise.

    Raises:
        ValueError: where a metric cannot be computed; two numbers of one name.
    """
    found: dict[str, float | None] = {}
    for key, metric in metrics.items():
        ours, theirs = {
            "features": (generated.features, real.features),
            "modes": (generated.modes, real.modes),
            "training": (generated.features, training),
            "teacher": (generated.features, teacher),
        }[metric.reads]
        values: Mapping[str, Tensor | None] = dict.fromkeys(metric.gives or (key,))
        if ours is not None and theirs is not None:
            try:
                value = metric.of(ours, theirs)
                values = value if isinstance(value, dict) else {key: value}
                if tuple(values) != (metric.gives or (key,)):
                    raise ValueError(
                        f"a metric of several numbers names them in `gives`: expected {list(values)} of "
                        f"{type(metric).__name__}, got {list(metric.gives)}"
                    )
            except NoValueError:
                pass
        twice = sorted(found.keys() & values.keys())
        if twice:
            raise ValueError(
                f"metrics have numbers of different names: expected one of each, got {twice} again from {key}"
            )
        found |= {name: None if number is None else float(number) for name, number in values.items()}
    return found


def null_values(
    metrics: Mapping[str, FeatureMetric],
    real: Samples,
    names: Collection[str],
    num_splits: int,
    generator: torch.Generator,
    most: int | None = None,
) -> dict[str, Tensor]:
    """Values [num_splits] of the named numbers on random halves of real samples: what chance makes of them.

    Only metrics that read features or modes are asked; a number without a value on every split is left out.

    Args:
        metrics: as of `numbers`.
        real: at least 4 samples.
        names: of numbers.
        num_splits: >= 1.
        generator: on the CPU.
        most: samples in a half, at most.
    """
    needed = {
        key: metric
        for key, metric in metrics.items()
        if metric.reads in ("features", "modes") and set(metric.gives or (key,)) & set(names)
    }
    splits = half_splits(len(real), num_splits, generator, most)
    rows = [numbers(needed, real[a], real[b]) for a, b in splits]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: torch.tensor(values) for name, values in columns.items() if None not in values}
