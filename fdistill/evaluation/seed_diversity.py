"""Does the seed still change the picture? Samples of one condition, student beside teacher, and an alarm that names it.

A student can answer every prompt rightly, and cover all classes, and still make one picture of each: whatever is
measured over all conditions together does not see that. So each of N conditions gets S seeds, and what the teacher's
own draws differ by is the band.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.distributed import gather_rows, same_on_all_ranks
from fdistill.core.random import fold_seed
from fdistill.data import InMemorySplit
from fdistill.evaluation.collapse_alarm import SPREADS, Band, CollapseAlarm
from fdistill.evaluation.features import FeatureExtractor, PatchFeatures, default_extractor, reads_patches
from fdistill.evaluation.metrics.condition_diversity import ConditionDiversity, condition_diversity
from fdistill.models.condition import Condition
from fdistill.models.vae import Decoder
from fdistill.sampling.generator import GenerativeModel

TOLERANCE = 0.15  # share of the teacher's Vendi score that a healthy student may lack
_NAMED = 10  # conditions that a reason names

Found = Mapping[str, ConditionDiversity]
"""What one draw of all conditions and seeds says, by the name of the feature space."""


def default_spaces(sample_shape: tuple[int, ...], num_classes: int) -> dict[str, FeatureExtractor]:
    """The features where nobody chose any: the default ones, and patches of images, which see shapes and no colours."""
    spaces: dict[str, FeatureExtractor] = {"features": default_extractor(sample_shape, num_classes)}
    return spaces | ({"patches": PatchFeatures()} if reads_patches(sample_shape) else {})


class SeedProbe:
    """Draws S seeds of each of N conditions of a model, and says how much they differ.

    Attributes:
        condition: N rows, or the empty condition.
        names: of the N conditions, for people: the prompts or the classes.
        spaces: feature extractors by name; prepared where `measure` is called.
        seeds: S.
        decoder: makes pictures of latents where a model has no decoder of its own.
    """

    def __init__(
        self,
        named: tuple[Condition, Sequence[str]],
        spaces: Mapping[str, FeatureExtractor],
        seeds: int = 16,
        seed: int = 0,
        decoder: Decoder | None = None,
    ) -> None:
        """Args:
        named: `GenerativeDataModule.named_conditions`.
        spaces: see the attribute.
        seeds: S >= 2.
        seed: of the latents and the spaces.
        decoder: see the attribute.

        Raises:
            ValueError: for fewer than two seeds, or no feature space.
        """
        if seeds < 2 or not spaces:
            raise ValueError(f"a condition needs at least 2 seeds and a feature space: got {seeds} and {len(spaces)}")
        self.condition, self.names = named[0], list(named[1])
        self.spaces, self.seeds, self.seed, self.decoder = dict(spaces), seeds, seed, decoder

    def prepare(self, pictures: InMemorySplit, num_classes: int) -> None:
        """Fit the feature spaces to real pictures, or where there are none to a teacher's; the same on all ranks."""
        labels = pictures.labels if num_classes > 1 else None
        for extractor in self.spaces.values():
            extractor.prepare(pictures, labels, num_classes, self.seed)
            same_on_all_ranks(extractor)

    def pictures(self, model: GenerativeModel, draw: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Every `world_size`-th of the pictures [N * S, ...] of draw number `draw`, all seeds of a condition together.

        Args:
            model: a student or a teacher.
            draw: 0, 1, ...; names the latents.
            rank: the number of the first picture.
            world_size: processes that draw.
        """
        mine = slice(rank, None, world_size)
        noise = model.noise(len(self.names) * self.seeds, fold_seed(self.seed, draw))[mine]
        samples = model.sample(noise, self.condition.repeat(self.seeds).rows(mine))
        decoder = model.decoder or self.decoder
        return samples if decoder is None else decoder.to(model.device)(samples)

    def in_order(self, rows: Tensor, world_size: int = 1) -> Tensor:
        """What the ranks have of the pictures of `pictures`, one row each, as [N * S, ...] on every rank."""
        if world_size == 1:
            return rows
        count = len(self.names) * self.seeds
        order = torch.cat([torch.arange(count)[rank::world_size] for rank in range(world_size)]).argsort()
        return gather_rows(rows)[order.to(rows.device)]

    def features(self, pictures: Tensor, world_size: int = 1) -> dict[str, Tensor]:
        """Features [N * S, d] of every rank's `pictures` by the name of the space; all ask, and all get them."""
        return {name: self.in_order(extractor.extract(pictures), world_size) for name, extractor in self.spaces.items()}

    def diversity(self, features: Mapping[str, Tensor]) -> Found:
        """How much the seeds of each condition differ, of `features`."""
        return {name: condition_diversity(rows.unflatten(0, (-1, self.seeds)).cpu()) for name, rows in features.items()}

    def measure(self, pictures: Tensor, world_size: int = 1) -> Found:
        """The diversity of what every rank's `pictures` gave, all ranks together; all ask, and all get it."""
        return self.diversity(self.features(pictures, world_size))


class SeedVerdict(NamedTuple):
    """What one evaluation of a student says.

    Attributes:
        alarm: whether the seed hardly changes the picture of some conditions, or less than it should on the whole.
        numbers: by name, for the log.
        collapsed: numbers of those conditions.
        reason: in words; empty without an alarm.
    """

    alarm: bool
    numbers: dict[str, float]
    collapsed: list[int]
    reason: str = ""


class SeedAlarm:
    """Judges a student by the teacher's own draws.

    In each feature space the logarithm of the Vendi score of one condition differs from draw to draw of the teacher by
    a standard deviation s, pooled over the conditions. A student's ratio to the teacher's mean over R draws is outside
    its band below (1 - tolerance) exp(-4 s sqrt(1 + 1/R)); the geometric mean over N conditions with s / sqrt(N).
    """

    def __init__(
        self,
        teacher: Sequence[Found],
        names: Sequence[str],
        patience: int = 2,
        grace: int = 0,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Args:
        teacher: its draws, R >= 2.
        names: of the N conditions.
        patience: evaluations in a row that a condition is outside its band, >= 1.
        grace: see `CollapseAlarm`.
        tolerance: share of the teacher's Vendi score that a healthy student may lack, in [0, 1).

        Raises:
            ValueError: for fewer than two draws, or a tolerance out of range.
        """
        if len(teacher) < 2 or not 0 <= tolerance < 1:
            raise ValueError(
                f"bands need at least 2 draws of a teacher, and a tolerance in [0, 1): got {len(teacher)}, {tolerance}"
            )
        self.names = list(names)
        self._logs: dict[str, Tensor] = {}
        self._teacher = {
            f"teacher_{key}": sum(_means(found)[key] for found in teacher) / len(teacher) for key in _means(teacher[0])
        }
        edges: dict[str, Band] = {}
        for space in teacher[0]:
            logs = torch.stack([found[space].vendi.log() for found in teacher])
            self._logs[space] = logs.mean(0)
            spread = SPREADS * float(logs.var(0).mean().sqrt()) * math.sqrt(1 + 1 / len(teacher))
            single, mean = (math.log1p(-tolerance) - spread / math.sqrt(n) for n in (1, len(self.names)))
            edges |= {_key(space, i): Band(math.exp(single), math.inf) for i in range(len(self.names))}
            edges[_key(space)] = Band(math.exp(mean), math.inf)
        self.alarm = CollapseAlarm(edges, patience, grace)

    def update(self, student: Found, updates: int = 0) -> SeedVerdict:
        """Judge a student after so many updates; call once for each evaluation, in order."""
        values: dict[str, float] = {}
        numbers = _means(student) | self._teacher
        for space, diversity in student.items():
            ratios = diversity.vendi.log() - self._logs[space]
            values |= {_key(space, i): float(ratio.exp()) for i, ratio in enumerate(ratios)}
            values[_key(space)] = numbers[f"vendi_ratio_{space}"] = float(ratios.mean().exp())
        alarm = self.alarm.update(values, updates).alarm
        lasting = [name for name, (times, _) in self.alarm.outside.items() if times >= self.alarm.patience and alarm]
        found = [i for i in range(len(self.names)) if any(_key(space, i) in lasting for space in student)]
        numbers |= {"collapsed_share": len(found) / len(self.names), "alarm": float(alarm)}
        return SeedVerdict(alarm, numbers, found, self._reason(lasting, found, values) if alarm else "")

    def _reason(self, lasting: list[str], found: list[int], values: Mapping[str, float]) -> str:
        worst = min(lasting, key=lambda name: values[name] / self.alarm.bands[name].low)
        space, edge = worst.partition(":")[0], self.alarm.bands[worst].low
        shown = ", ".join(self.names[i] for i in found[:_NAMED]) + (" ..." if len(found) > _NAMED else "")
        of = f"of {len(found)} of {len(self.names)} conditions ({shown})" if found else "on the whole"
        return (
            f"the seed hardly changes the picture {of}: Vendi score {values[worst]:.2f} of the teacher's in {space}, "
            f"below {edge:.2f}"
        )


def _key(space: str, number: int | None = None) -> str:
    return f"{space}:{'all' if number is None else number}"


def _means(found: Found) -> dict[str, float]:
    """Over the conditions, by name."""
    kinds = ConditionDiversity._fields
    return {
        f"{kind}_{space}": float(getattr(diversity, kind).mean())
        for space, diversity in found.items()
        for kind in kinds
    }
