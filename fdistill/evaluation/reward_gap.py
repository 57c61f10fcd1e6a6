"""Reward and diversity of stochastic and of deterministic samples of one model, from the same latents."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.metrics import FeatureMetric, NeighbourMetrics, TailIndexDifference, VendiScore
from fdistill.evaluation.samples import Samples, numbers
from fdistill.evaluation.seed_diversity import Found, SeedProbe, default_spaces
from fdistill.models.condition import Condition
from fdistill.sampling import GDDIM
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.noise_levels import karras_grid

METRICS: dict[str, FeatureMetric] = {
    "neighbours": NeighbourMetrics(),
    "vendi_ratio": VendiScore(relative=True),
    "tail_index": TailIndexDifference(),
}
READ = ("recall", "vendi_ratio", "anchored_tid", "precision")  # of the numbers that these give
Z = 1.96  # standard errors of a 95% interval

Judge = Callable[[Tensor, Condition], Tensor]
"""Pictures [n, ...] and their conditions -> each part's reward [n, parts]."""


class Gap(NamedTuple):
    """Mean difference of two rewards of the same latents, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Gap":
        """That of rewards [n] of the same n >= 2 latents: the standard deviation of the differences over sqrt(n)."""
        differences = one.double() - other.double()
        return cls(float(differences.mean()), float(differences.std() / len(differences) ** 0.5))

    @property
    def low(self) -> float:
        """Lower end of its 95% interval."""
        return self.mean - Z * self.error

    @property
    def high(self) -> float:
        """Upper end of its 95% interval."""
        return self.mean + Z * self.error


class Look(NamedTuple):
    """What one sampler makes of a model.

    Attributes:
        scores: each part's reward, [n, parts] on the CPU.
        found: how much the seeds of each condition differ.
        values: recall, vendi_ratio, anchored_tid, precision, where they have a value, and condition_vendi, the mean
            Vendi score of the seeds of one condition.
    """

    scores: Tensor
    found: Found
    values: dict[str, float]


class GapProbe:
    """S samples of each of N conditions by `GDDIM` of any steps and eta, judged and compared with training samples.

    Recall, Vendi ratio and anchored TID read the first feature space, against as many random training samples. These
    have all conditions of the data, the samples those of `num_conditions`: compare models, not with 1.
    """

    def __init__(
        self,
        data: GenerativeDataModule,
        ends: tuple[float, float],
        num_conditions: int = 10,
        seeds: int = 32,
        spaces: Mapping[str, FeatureExtractor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args:
        data: real samples; the images of latents.
        ends: first noise level of every grid, and the last one above 0.
        num_conditions: N, at most.
        seeds: S >= 2.
        spaces: feature extractors by name, prepared here; None for the default ones and patches of images.
        seed: of latents, reference and extractors.
        device: where features are extracted.

        Raises:
            ValueError: for fewer training samples than N S, or fewer than two seeds.
        """
        shown = data.in_pixels(device)
        train = shown.train_samples
        spaces = spaces or default_spaces(tuple(shown.sample_shape), data.num_classes)
        for extractor in spaces.values():
            extractor.keep_learned().to(device)
        self.probe = SeedProbe(data.named_conditions(num_conditions), spaces, seeds, seed, data.decoder)
        self.ends, self.n = ends, len(self.probe.names) * seeds
        if self.n > len(train):
            raise ValueError(
                f"samples are compared with as many training samples: expected at most {len(train)}, got {self.n} "
                f"({len(self.probe.names)} conditions of {seeds} seeds); take fewer seeds or conditions"
            )
        self.probe.prepare(train, data.num_classes)
        chosen = torch.randperm(len(train), generator=generator_for(seed))[: self.n]
        first = next(iter(spaces.values()))
        self.reference = Samples(first.extract(train.rows(chosen).x, keep=True))

    def look(
        self,
        model: GenerativeModel,
        judge: Judge,
        steps: int,
        eta: float,
        draw: int = 0,
        ranks: tuple[int, int] = (0, 1),
    ) -> Look:
        """Sample, judge and compare; every rank asks, and gets the same.

        Args:
            model: a teacher.
            judge: what samples are worth.
            steps: of EDM's grid between `ends`, >= 1.
            eta: stochasticity of all steps, >= 0.
            draw: names the latents.
            ranks: rank, and number of them.
        """
        return self.read(self.pictures(model, steps, eta, draw, ranks), judge, ranks)

    def pictures(
        self, model: GenerativeModel, steps: int, eta: float, draw: int = 0, ranks: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """This rank's share of the N S samples, all seeds of a condition together; arguments as of `look`."""
        grid = karras_grid(steps, self.ends[1], self.ends[0])
        return self.probe.pictures(dataclasses.replace(model, sampler=GDDIM(eta), sigmas=grid), draw, *ranks)

    def read(self, pictures: Tensor, judge: Judge, ranks: tuple[int, int] = (0, 1)) -> Look:
        """Judge and compare every rank's `pictures`."""
        condition = self.probe.condition.repeat(self.probe.seeds).rows(slice(ranks[0], None, ranks[1]))
        scores = self.probe.in_order(judge(pictures, condition), ranks[1]).cpu()
        features = self.probe.features(pictures, ranks[1])
        found = self.probe.diversity(features)
        first = next(iter(found))
        given = numbers(METRICS, Samples(features[first]), self.reference)
        values = {name: number for name in READ if (number := given[name]) is not None}
        return Look(scores, found, values | {"condition_vendi": float(found[first].vendi.mean())})
