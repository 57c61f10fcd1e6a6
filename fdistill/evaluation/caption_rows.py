"""What is measured of pictures of captions: are they what was asked for, and does the seed still change them?"""

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.data import CaptionedDigits
from fdistill.data.captioned_digits import caption_parts, held_out_captions
from fdistill.evaluation.features import CaptionFeatures, PatchFeatures
from fdistill.evaluation.metrics import frechet_distance, precision_recall, vendi_score
from fdistill.evaluation.metrics.condition_diversity import condition_diversity

MOST_CAPTIONS = 30
"""Of each set: all new ones, and as many of those that training images have."""
MOST_SEEDS = 24
"""Of each caption: of a held-out digit there are 48 images or more, half of which are the floor."""

Row = dict[str, float]


def spread(pictures: Tensor) -> Tensor:
    """Standard deviation of a value over the S pictures of a caption, then the mean of all; float64 scalar.

    Args:
        pictures: [N, S, ...], S >= 2.

    Raises:
        ValueError: for fewer than two pictures of a caption.
    """
    if pictures.ndim < 3 or pictures.shape[1] < 2:
        raise ValueError(f"a spread is that of at least two pictures of a caption [N, S, ...]: got {pictures.shape}")
    return pictures.double().std(dim=1).mean()


class CaptionSet:
    """Some captions, with S held-out images of each as the reference and S others as the floor.

    Attributes:
        numbers: of the captions, int64 [N].
        reference, floor: [N * S, 3, 8, 8], all images of a caption together.
    """

    def __init__(self, data: CaptionedDigits, numbers: Tensor, seeds: int, seed: int) -> None:
        self.numbers, self.seeds = numbers, seeds
        images = data.held_out_samples
        chosen = [_some(images.labels, number, 2 * seeds, seed) for number in numbers.tolist()]
        self.reference, self.floor = (
            images.rows(torch.cat([rows[part : part + seeds] for rows in chosen])).x for part in (0, seeds)
        )

    @property
    def wanted(self) -> Tensor:
        """The caption of each picture, int64 [N * S]."""
        return self.numbers.repeat_interleave(self.seeds)


def caption_sets(data: CaptionedDigits, seeds: int, seed: int) -> dict[str, CaptionSet]:
    """Named "shown": up to 30 captions that training images have, evenly over all; "new": those that none has."""
    new = held_out_captions()
    all_numbers = torch.arange(data.num_classes)
    shown = all_numbers[~torch.isin(all_numbers, new)]
    evenly = torch.linspace(0, len(shown) - 1, MOST_CAPTIONS).round().long()
    return {"shown": CaptionSet(data, shown[evenly], seeds, seed), "new": CaptionSet(data, new, seeds, seed)}


class CaptionMetrics:
    """The numbers of a set of pictures, by a judge that reads digit and colours, and by patches that see strokes."""

    def __init__(self, data: CaptionedDigits, judge: CaptionFeatures, seed: int) -> None:
        self.judge, self.patches = judge, PatchFeatures()
        for extractor in (judge, self.patches):
            extractor.prepare(data.train_samples, data.train_samples.labels, data.num_classes, seed)

    def row(self, pictures: Tensor, of: CaptionSet) -> Row:
        """Of pictures [N * S, 3, 8, 8] of the captions of a set, all of a caption together."""
        features, real = self.judge.extract(pictures), self.judge.extract(of.reference)
        right = self.judge.parts_of(features).cpu() == caption_parts()[of.wanted]
        near = precision_recall(features, real)
        by_caption = {
            name: condition_diversity(found.unflatten(0, (-1, of.seeds)).cpu()).vendi.mean()
            for name, found in (("features", features), ("patches", self.patches.extract(pictures)))
        }
        numbers = {
            "accuracy": right.all(1).double().mean(),
            "accuracy_digit": right[:, 0].double().mean(),
            "accuracy_colours": right[:, 1:].all(1).double().mean(),
            "spread": spread(pictures.unflatten(0, (-1, of.seeds))),
            "frechet_distance": frechet_distance(features, real),
            "precision": near.precision,
            "recall": near.recall,
            "vendi": vendi_score(features),
            "vendi_by_caption": by_caption["features"],
            "vendi_by_caption_patches": by_caption["patches"],
        }
        return {name: float(value) for name, value in numbers.items()}


def _some(labels: Tensor, number: int, count: int, seed: int) -> Tensor:
    rows = (labels == number).nonzero()[:, 0]
    if len(rows) < count:
        raise ValueError(f"a caption is compared with other images of it: expected {count} held out, got {len(rows)}")
    return rows[torch.randperm(len(rows), generator=generator_for(seed, number))[:count]]
