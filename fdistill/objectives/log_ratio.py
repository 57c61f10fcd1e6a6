"""The log density ratio ln p/q of noised teacher and student samples: discriminators, and two stages of normalisation.

A discriminator trained with softplus losses on noised real (p) and generated (q) samples has the optimal logit ln
p_t/q_t (arXiv 2502.15681). Its errors are mended by two identities: E_q[p/q] = 1 at every noise level, and the scale
of a loss is free. A penalty on its slope at real samples (R1) keeps it smooth.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdistill.core.distributed import global_mean, global_sum
from fdistill.models.condition import Condition, Conditioned, Takes
from fdistill.models.denoiser import HalfDenoised
from fdistill.models.networks import GaussianMixture
from fdistill.models.networks.embeddings import FourierEmbedding, class_embedding, class_tables
from fdistill.theory.noise_levels import NoiseLevels

_GRID = 4  # positions a side that a discriminator head keeps


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
    """A small MLP on the noised sample itself, its noise level and its classes: for low-dimensional data."""

    def __init__(self, sample_shape: Sequence[int], takes: Takes | None = None, width: int = 128) -> None:
        """Args:
        sample_shape: shape of one sample.
        takes: the classes that it sees; None where unconditional. Other tensors of a condition are not read.
        width: hidden channels.
        """
        super().__init__()
        self.noise = FourierEmbedding(32)
        self.takes = takes or {}
        self.classes = class_tables(32, self.takes)
        inputs = math.prod(sample_shape) + 32 + (32 if self.classes is not None else 0)
        self.body = nn.Sequential(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, sigma: Tensor, condition: Conditioned, sigma_data: float) -> Tensor:
        """Logits [B] from noised samples [B, *sample_shape] in variance-exploding coordinates."""
        scale = (sigma.square() + sigma_data**2).rsqrt()
        inputs = [x.flatten(1) * scale[:, None], self.noise(sigma.log() / 4)]
        if self.classes is not None:
            inputs.append(class_embedding(self.classes, Condition.of(condition, self.takes)))
        return self.body(torch.cat(inputs, dim=1)).squeeze(1)


class ExactRatio(nn.Module):
    """ln p/q of two Gaussian mixtures, called like a `SampleDiscriminator`: what estimates are held against."""

    def __init__(self, teacher: GaussianMixture, student: GaussianMixture) -> None:
        """Args:
        teacher: p.
        student: q, of the same dimension.

        Raises:
            ValueError: where the dimensions differ.
        """
        super().__init__()
        if teacher.sample_shape != student.sample_shape:
            raise ValueError(
                "a ratio compares two laws of the same samples: expected equal sample shapes, got "
                f"{teacher.sample_shape} and {student.sample_shape}; change one mixture"
            )
        self.teacher, self.student = teacher, student

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Conditioned = None, sigma_data: float | None = None
    ) -> Tensor:
        """ln p_t/q_t [B] in the precision of x, at noised samples [B, d]; the rest has no influence."""
        return self.teacher.log_prob(x, sigma) - self.student.log_prob(x, sigma)


class RatioEstimator(nn.Module):
    """Logits of noised samples, and from them the normalised log ratio; all of its state is its own."""

    def __init__(
        self,
        discriminator: FeatureDiscriminator | SampleDiscriminator | ExactRatio,
        noise_levels: NoiseLevels,
        sigma_data: float,
        num_bins: int = 10,
        decay: float = 0.99,
        clip: tuple[float, float] = (0.1, 20.0),
    ) -> None:
        """Args:
        discriminator: on features or on the sample, or the exact ratio where it is known.
        noise_levels: the distribution the noise of the ratio is drawn from; it defines the bins.
        sigma_data: standard deviation of the data.
        num_bins: bins of equal probability of the sampled noise level.
        decay: of the moving averages of each bin, per batch.
        clip: range the raw ratio is clipped to before stage 1, as in the reference implementation; (0, inf) clips
            nothing, and then a single ratio that overflows float32 (ln r > 88) spoils the averages of its bin.

        Raises:
            ValueError: for no bin, a decay outside [0, 1), or a clip range without 0 <= low < high.
        """
        super().__init__()
        if num_bins < 1 or not 0 <= decay < 1:
            raise ValueError(f"the ratio needs at least 1 bin and a decay in [0, 1): got {num_bins} and {decay}")
        if not 0 <= clip[0] < clip[1]:
            raise ValueError(f"a ratio is clipped to 0 <= low < high: got {tuple(clip)}; (0, inf) clips nothing")
        self.discriminator, self.noise_levels, self.sigma_data = discriminator, noise_levels, sigma_data
        self.decay = decay
        self.log_clip = (math.log(clip[0]) if clip[0] > 0 else -math.inf, math.log(clip[1]))
        self.ratio_sum: Tensor
        self.count: Tensor
        self.register_buffer("ratio_sum", torch.ones(num_bins))
        self.register_buffer("count", torch.ones(num_bins))

    def logit(self, half: HalfDenoised | None, x: Tensor, sigma: Tensor, condition: Conditioned) -> Tensor:
        """Raw logits [B]; `half` is the encoder half at x where the discriminator reads features, else unused."""
        if isinstance(self.discriminator, FeatureDiscriminator):
            assert half is not None
            return self.discriminator(half.features)
        return self.discriminator(x, sigma, condition, self.sigma_data)

    @torch.no_grad()
    def log_ratio(self, logit: Tensor, sigma: Tensor, continues: bool = False) -> Tensor:
        """Stage 1, [B]: clip, learn the mean ratio of each noise bin from these q-samples, subtract its log.

        Where they continue the batch of the last call, the averages forget nothing and end as with both at once.
        """
        raw, bins = self._clipped(logit), self.bin_of(sigma)
        self._average(self.ratio_sum, torch.zeros_like(self.ratio_sum).index_add_(0, bins, raw.exp()), continues)
        self._average(self.count, torch.zeros_like(self.count).index_add_(0, bins, torch.ones_like(raw)), continues)
        return self.centred(logit, sigma)

    @torch.no_grad()
    def centred(self, logit: Tensor, sigma: Tensor) -> Tensor:
        """Stage 1 as it stands, [B]: nothing is learned, so that samples need not be the student's."""
        return self._clipped(logit) - (self.ratio_sum / self.count).log()[self.bin_of(sigma)]

    def bin_of(self, sigma: Tensor) -> Tensor:
        """Index of the noise bin, int64 [B]."""
        num_bins = len(self.count)
        return (self.noise_levels.cdf(sigma) * num_bins).long().clamp(0, num_bins - 1)

    def clipped_fraction(self, logit: Tensor) -> Tensor:
        """Share of this rank's raw log ratios outside the clip range."""
        low, high = self.log_clip
        return ((logit < low) | (logit > high)).float().mean()

    def _clipped(self, logit: Tensor) -> Tensor:
        return logit.detach().float().clamp(*self.log_clip)

    def _average(self, average: Tensor, batch_sum: Tensor, continues: bool) -> None:
        if continues:
            average.add_(global_sum(batch_sum), alpha=1 - self.decay)
        else:
            average.lerp_(global_sum(batch_sum), 1 - self.decay)


def gradient_penalty(
    logit_of: Callable[[Tensor], Tensor],
    x_t: Tensor,
    sigma: Tensor,
    sigma_data: float,
    generator: torch.Generator | None = None,
    step: float = 0.0,
) -> Tensor:
    """R1: |grad l(x_t)|^2 at noised real samples (arXiv 1801.04406), times sigma^2 + sigma_data^2; [B], with gradient.

    In units of the noised sample's own standard deviation one weight serves every noise level. A step > 0 replaces the
    gradient by a difference along one random direction n per sample (arXiv 2501.08316): (l(x_t + h n) - l(x_t))^2 /
    step^2 with h = step sqrt(sigma^2 + sigma_data^2). Its mean over n exceeds the exact penalty by O(step^2), and it
    needs no second derivatives. It is divided by step^2, so that the weight does not depend on the step; that paper's
    weight 100 at step 0.01 (images) or 0.1 (video) is a weight of 0.01 or 1 here.

    What is moved is the noised sample, and sigma stays: a clean sample has no place at sigma. FastGen (commit 34f30e8,
    `_compute_r1_regularization` in dmd2.py and ladd.py) moves the clean sample, feeds it with the time of the noised
    one, and compares it with that one's logit: this difference does not vanish with the step and is no slope.

    Args:
        logit_of: from samples like x_t, at their sigma and condition, to logits [B]; twice differentiable where step
            is 0, and each logit depends on its own sample only.
        x_t: noised real samples [B, *sample_shape] in variance-exploding coordinates; they get no gradient.
        sigma: their noise levels, [B].
        sigma_data: standard deviation of the data.
        generator: of the directions where step > 0.
        step: 0 for the exact penalty; else the length of the difference, in standard deviations of x_t.

    Raises:
        ValueError: where step is negative or not finite.
    """
    if not 0 <= step < math.inf:
        raise ValueError(f"step of the gradient penalty is finite and not negative: got {step}; 0 is exact")
    scale = (sigma.square() + sigma_data**2).sqrt()
    if step == 0:
        with torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(logit_of(x).sum(), x, create_graph=True)
        return scale.square() * slope.flatten(1).square().sum(1)
    x = x_t.detach()
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    moved = x + step * scale.reshape(-1, *[1] * (x.ndim - 1)) * direction
    return ((logit_of(moved) - logit_of(x)) / step).square()


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
