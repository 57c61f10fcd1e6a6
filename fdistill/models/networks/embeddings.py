"""How the noise level and the class enter our own networks."""

import math

import torch
from torch import Tensor, nn


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
    """Noise embedding plus class embedding, [B, channels]; the last class row means "no class"."""

    def __init__(self, channels: int, num_classes: int) -> None:
        """Args:
        channels: width of the embedding.
        num_classes: 0 for none.
        """
        super().__init__()
        self.noise = nn.Sequential(FourierEmbedding(channels), nn.Linear(channels, channels), nn.SiLU())
        self.mix = nn.Linear(channels, channels)
        self.classes = nn.Embedding(num_classes + 1, channels) if num_classes else None

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """noise [B], labels int64 [B]."""
        waves, linear, activation = self.noise
        embedding = self.mix(activation(linear(waves(noise).to(linear.weight.dtype))))
        if self.classes is not None:
            embedding = embedding + self.classes(required_labels(labels))
        return embedding


def required_labels(labels: Tensor | None) -> Tensor:
    """labels, or a clear error where a conditional network was called without them."""
    if labels is None:
        raise ValueError("a class-conditional network needs labels (int64, [B]): got None; num_classes means no class")
    return labels


def class_vectors(labels: Tensor | None, num_classes: int) -> Tensor:
    """One-hot rows, int64 [B, num_classes]; the label num_classes, "no class", is the zero row."""
    return nn.functional.one_hot(required_labels(labels), num_classes + 1)[:, :num_classes]


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The type of a noise input to weights of this one: float32 where that is coarser, because embeddings turn fast."""
    return torch.promote_types(dtype, torch.float32)
