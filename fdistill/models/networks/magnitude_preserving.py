"""Layers that keep the expected magnitude (root mean square) of their input (Karras et al. 2024, arXiv 2312.02696)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit_magnitude(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x over its root mean square along `dim`, plus 1e-4; the norm is at least of single precision."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square at normal input, .596 (equation 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """(1 - t) a + t b, scaled so that independent branches of unit magnitude keep it (equation 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """a and b side by side along the channels, both of the same share in what comes out (equation 103)."""
    of_a, of_b = a.shape[1], b.shape[1]
    half = (of_a + of_b) / 2
    return torch.cat([a * math.sqrt(half / of_a), b * math.sqrt(half / of_b)], dim=1)


class MPFourier(nn.Module):
    """sqrt(2) cos(f x + phase) at random frequencies and phases, which are part of the weights (equation 75)."""

    def __init__(self, channels: int) -> None:
        """Args:
        channels: width of the embedding.
        """
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.phases: Tensor
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, value: Tensor) -> Tensor:
        """[B] to [B, channels]."""
        return math.sqrt(2) * (value[:, None] * self.freqs.to(value.dtype) + self.phases.to(value.dtype)).cos()


class MPConv(nn.Module):
    """A convolution or linear map without bias, whose output vectors have weights of unit magnitude (equation 47)."""

    exact_in_training = True

    def __init__(self, inward: int, outward: int, size: int = 0) -> None:
        """Args:
        inward: input channels.
        outward: output channels.
        size: odd side of the convolution; 0 for a linear map.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outward, inward, *([size, size] if size else [])))
        self._normalised = (0, 0)  # which tensor, at which of its versions

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[B, inward, ...] to [B, outward, ...], times the gain."""
        fan_in = self.weight[0].numel()
        weight = (self._unit() * (gain / math.sqrt(fan_in))).to(x.dtype)
        return x @ weight.t() if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def normalise(self) -> None:
        """Replace the weights by their unit vectors, unless nothing has written to them since (equation 66).

        A second forward pass before the backward pass of the first must not write to what the first has saved.
        """
        if (id(self.weight), self.weight._version) != self._normalised:
            with torch.no_grad():
                self.weight.copy_(self._unit())
            self._normalised = (id(self.weight), self.weight._version)

    def _save_to_state_dict(self, *args: Any) -> None:
        if self.training and self.weight.requires_grad:  # what the next forward pass would do, once
            self.normalise()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._normalised = (id(self.weight), self.weight._version)

    def _unit(self) -> Tensor:
        return unit_magnitude(self.weight, tuple(range(1, self.weight.ndim)))
