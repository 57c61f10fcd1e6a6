"""How the noise level and the classes enter our own networks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fdistill.models.condition import LABELS, Condition, Takes, takes_classes
from fdistill.models.quantised import weight_dtype


class FourierEmbedding(nn.Module):
    """cos and sin of a number at geometrically spaced frequencies; suits ln(sigma)/4 as well as sigma or t."""

    def __init__(self, channels: int, max_frequency: float = 50.0) -> None:
        """Args:
        channels: even width of the embedding.
        max_frequency: angular frequency of the fastest pair; the slowest has 1.
        """
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels of a Fourier embedding are even and positive: got {channels}")
        exponents = torch.linspace(0, 1, channels // 2)
        self.frequencies: Tensor
        self.register_buffer("frequencies", (exponents * math.log(max_frequency)).exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """[B] to [B, channels]."""
        angles = value[:, None] * self.frequencies.to(value.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class ConditionEmbedding(nn.Module):
    """Noise embedding plus class embeddings, [B, channels]; the last row of each set of classes means "no class"."""

    def __init__(self, channels: int, num_classes: int | Mapping[str, int]) -> None:
        """Args:
        channels: width of the embedding.
        num_classes: 0 for none; several sets of classes by their names.
        """
        super().__init__()
        self.noise = nn.Sequential(FourierEmbedding(channels), nn.Linear(channels, channels), nn.SiLU())
        self.mix = nn.Linear(channels, channels)
        self.takes = takes_classes(num_classes)
        self.classes = class_tables(channels, self.takes)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """noise [B], the condition of as many samples."""
        waves, linear, activation = self.noise
        embedding = self.mix(activation(linear(waves(noise).to(weight_dtype(linear)))))
        if self.classes is not None:
            embedding = embedding + class_embedding(self.classes, condition)
        return embedding


def class_tables(channels: int, takes: Takes) -> nn.Embedding | nn.ModuleDict | None:
    """A table of vectors [classes + 1, channels] for each set of classes, the last row for "no class".

    They are kept by name, but for "labels" alone; None where there is no set.
    """
    counts = {name: entry.classes for name, entry in takes.items() if entry.classes}
    tables = {name: nn.Embedding(count + 1, channels) for name, count in counts.items()}
    return tables[LABELS] if tables.keys() == {LABELS} else nn.ModuleDict(tables) if tables else None


def class_embedding(tables: nn.Embedding | nn.ModuleDict, condition: Condition) -> Tensor:
    """The sum of the vectors of each sample's classes, [B, channels]."""
    if isinstance(tables, nn.Embedding):
        return tables(condition[LABELS])
    return torch.stack([table(condition[name]) for name, table in tables.items()]).sum(0)


def class_vectors(condition: Condition, num_classes: int) -> Tensor:
    """One-hot rows of "labels", int64 [B, num_classes]; the label num_classes, "no class", is the zero row."""
    return nn.functional.one_hot(condition[LABELS], num_classes + 1)[:, :num_classes]


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The type of a noise input to weights of this one: float32 where that is coarser, because embeddings turn fast."""
    return torch.promote_types(dtype, torch.float32)
