"""The discriminator of a distillation: what it reads, and what it learns from."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fdistill.denoiser import Denoiser
from fdistill.log_ratio import FeatureDiscriminator, RatioEstimator, SampleDiscriminator, gradient_penalty
from fdistill.modules.consult import consult

Reads = Literal["teacher", "fake_score", "sample", "none"]
"""Encoder features of a network, the noised sample itself (small data), or no discriminator at all."""


def build_discriminator(
    reads: Reads, teacher: Denoiser, student: Denoiser, fake_score: Denoiser | None, seed: int
) -> nn.Module:
    """A discriminator with seeded weights; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if reads == "sample":
            return SampleDiscriminator(student.sample_shape, student.num_classes)
        source = teacher if reads == "teacher" else fake_score
        return FeatureDiscriminator(source.network.feature_channels)


def logit_of(
    ratio: RatioEstimator,
    source: Denoiser | None,
    x_t: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    source_learns: bool,
) -> Tensor:
    """Logits [B] of noised samples; `source` is the network whose features are read, None for the sample itself."""
    features = "nothing" if source is None else "gradient" if x_t.requires_grad else "value"
    half = consult(source, x_t, sigma, labels, features=features, learns=source_learns).half
    return ratio.logit(half, x_t, sigma, labels)


def r1_penalty(
    logit_at: Callable[[Tensor], Tensor],
    real: Tensor,
    sigma: Tensor,
    sigma_data: float,
    generator: torch.Generator,
    step: float,
) -> Tensor:
    """The mean gradient penalty at noised real samples, a scalar.

    It is computed in float32 under mixed precision too: bf16 logits differ by .4 % or not at all, and the penalty
    divides their difference by the step.
    """
    with torch.autocast(real.device.type, enabled=False):
        return gradient_penalty(logit_at, real, sigma, sigma_data, generator, step).mean()
