"""The log density ratio ln p/q of noised teacher and student samples: discriminators, and two stages of normalisation.

A discriminator trained with softplus losses on noised real (p) and generated (q) samples has the optimal logit ln
p_t/q_t (arXiv 2502.15681). Its errors are mended by two identities: E_q[p/q] = 1 at every noise level, and the scale
of a loss is free.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdistill.denoiser import HalfDenoised
from fdistill.distributed import global_mean, global_sum
from fdistill.networks.embeddings import FourierEmbedding
from fdistill.noise_levels import NoiseLevels

_GRID = 4  # positions a side that a discriminator head tells apart


class FeatureDiscriminator(nn.Module):
    """One small head on each feature tap of a denoiser; the logit is the sum of the heads."""

    def __init__(self, feature_channels: Sequence[int], width: int = 32) -> None:
        """Args:
        feature_channels: channels of each tap.
        width: hidden channels of each head.
        """
        super().__init__()
        self.heads = nn.ModuleList(_Head(channels, width) for channels in feature_channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [B] from taps of shape [B, C, ...]."""
        return torch.stack([head(tap) for head, tap in zip(self.heads, features, strict=True)]).sum(0)


class SampleDiscriminator(nn.Module):
    """A small MLP on the noised sample itself, its noise level and its class: for low-dimensional data."""

    def __init__(self, sample_shape: Sequence[int], num_classes: int = 0, width: int = 128) -> None:
        """Args:
        sample_shape: shape of one sample.
        num_classes: 0 where unconditional.
        width: hidden channels.
        """
        super().__init__()
        self.noise = FourierEmbedding(32)
        self.classes = nn.Embedding(num_classes + 1, 32) if num_classes else None
        inputs = math.prod(sample_shape) + 32 + (32 if num_classes else 0)
        self.body = nn.Sequential(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, sigma_data: float) -> Tensor:
        """Logits [B] from noised samples [B, *sample_shape] in variance-exploding coordinates."""
        scale = (sigma.square() + sigma_data**2).rsqrt()
        inputs = [x.flatten(1) * scale[:, None], self.noise(sigma.log() / 4)]
        if self.classes is not None:
            inputs.append(self.classes(labels))
        return self.body(torch.cat(inputs, dim=1)).squeeze(1)


class RatioEstimator(nn.Module):
    """Logits of noised samples, and from them the normalised log ratio; all of its state is its own."""

    def __init__(
        self,
        discriminator: FeatureDiscriminator | SampleDiscriminator,
        noise_levels: NoiseLevels,
        sigma_data: float,
        num_bins: int = 10,
        decay: float = 0.99,
        clip: tuple[float, float] = (0.1, 20.0),
    ) -> None:
        """Args:
        discriminator: on features or on the sample.
        noise_levels: the distribution the noise of the ratio is drawn from; it defines the bins.
        sigma_data: standard deviation of the data.
        num_bins: bins of equal probability of the sampled noise level.
        decay: of the moving averages of each bin, per batch.
        clip: range the raw ratio is clipped to before stage 1, as in the reference implementation.
        """
        super().__init__()
        if num_bins < 1 or not 0 <= decay < 1:
            raise ValueError(f"the ratio needs at least 1 bin and a decay in [0, 1): got {num_bins} and {decay}")
        self.discriminator, self.noise_levels, self.sigma_data = discriminator, noise_levels, sigma_data
        self.decay, self.log_clip = decay, (math.log(clip[0]), math.log(clip[1]))
        self.register_buffer("ratio_sum", torch.ones(num_bins))
        self.register_buffer("count", torch.ones(num_bins))

    @property
    def reads_features(self) -> bool:
        """Whether logits come from a denoiser's features."""
        return isinstance(self.discriminator, FeatureDiscriminator)

    def logit(self, half: HalfDenoised | None, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Raw logits [B]; `half` is the encoder half at x where the discriminator reads features, else unused."""
        if self.reads_features:
            return self.discriminator(half.features)
        return self.discriminator(x, sigma, labels, self.sigma_data)

    @torch.no_grad()
    def log_ratio(self, logit: Tensor, sigma: Tensor) -> Tensor:
        """Stage 1, [B]: clip, learn the mean ratio of each noise bin from these q-samples, subtract its log."""
        raw = logit.detach().float().clamp(*self.log_clip)
        bins = self.bin_of(sigma)
        self._average(self.ratio_sum, torch.zeros_like(self.ratio_sum).index_add_(0, bins, raw.exp()))
        self._average(self.count, torch.zeros_like(self.count).index_add_(0, bins, torch.ones_like(raw)))
        return raw - (self.ratio_sum / self.count).log()[bins]

    def bin_of(self, sigma: Tensor) -> Tensor:
        """Index of the noise bin, int64 [B]."""
        num_bins = len(self.count)
        return (self.noise_levels.cdf(sigma) * num_bins).long().clamp(0, num_bins - 1)

    def clipped_fraction(self, logit: Tensor) -> Tensor:
        """Share of this rank's raw log ratios outside the clip range."""
        low, high = self.log_clip
        return ((logit < low) | (logit > high)).float().mean()

    def _average(self, average: Tensor, batch_sum: Tensor) -> None:
        average.lerp_(global_sum(batch_sum), 1 - self.decay)


def unit_mean(weight: Tensor) -> Tensor:
    """Stage 2: weights [B] divided by their mean over the global batch."""
    return weight / global_mean(weight)


class _Head(nn.Module):
    """One tap to one logit: a 3x3 convolution, a coarse grid that keeps where things are, a small MLP."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.hidden = nn.Linear(width * _GRID**2, width)
        self.logit = nn.Linear(width, 1)
        self.activation = nn.SiLU()

    def forward(self, tap: Tensor) -> Tensor:
        spatial = tap.reshape(*tap.shape, *[1] * (4 - tap.ndim))
        coarse = F.adaptive_avg_pool2d(self.activation(self.norm(self.convolution(spatial))), _GRID)
        return self.logit(self.activation(self.hidden(coarse.flatten(1)))).squeeze(1)
