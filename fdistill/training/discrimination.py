"""The discriminator of a distillation: what it reads, and what it learns from."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.objectives.base import Asked
from fdistill.objectives.log_ratio import FeatureDiscriminator, RatioEstimator, SampleDiscriminator, gradient_penalty
from fdistill.training.consult import Opinion, consult

Reads = Literal["teacher", "fake_score", "sample", "none"]
"""Encoder features of a network, the noised sample itself (small data), or no discriminator at all."""


class Shown(NamedTuple):
    """Noised samples as the discriminator sees them, and the noise level that it is told."""

    x_t: Tensor  # [B, *sample_shape]
    sigma: Tensor  # [B]


def shown(
    x_t: Tensor, sigma: Tensor, instance_noise: float, generator: torch.Generator, highest: float = math.inf
) -> Shown:
    """x_t + tau n at the level sqrt(sigma^2 + tau^2): instance noise tau (arXiv 1610.04490), in units of the data.

    Real and generated samples get it by the same law. The optimal logit becomes the log ratio of the laws noised at
    the higher level, of which more is common to both.

    Args:
        x_t: samples noised at sigma, [B, *sample_shape]; they come back as they are where tau is 0.
        sigma: [B].
        instance_noise: tau.
        generator: of n; nothing is drawn where tau is 0.
        highest: noise level beyond which no network knows its input: samples near it get less noise, up to it.

    Raises:
        ValueError: where tau is negative, which only a schedule can be here.
    """
    if instance_noise < 0:
        raise ValueError(f"instance_noise is not negative at any update: got {instance_noise}; correct its schedule")
    if instance_noise == 0:
        return Shown(x_t, sigma)
    noise = torch.randn(x_t.shape, generator=generator, device=x_t.device)
    if highest < math.inf:
        added = (highest**2 - sigma.square()).clamp(0, instance_noise**2)
        moved = x_t + added.sqrt().reshape(-1, *[1] * (x_t.ndim - 1)) * noise
        return Shown(moved, (sigma.square() + added).sqrt())
    return Shown(x_t + instance_noise * noise, (sigma.square() + instance_noise**2).sqrt())


def consult_and_show(
    denoiser: Denoiser,
    x_t: Tensor,
    sigma: Tensor,
    seen: Shown,
    labels: Tensor | None,
    value: Asked,
    features: Asked,
    guidance: float | Guidance = 1.0,
    learns: bool = False,
) -> Opinion:
    """`consult`, with the features of what the discriminator sees: a second evaluation where that is not x_t itself."""
    if seen.x_t is x_t:
        return consult(denoiser, x_t, sigma, labels, value, features, guidance, learns)
    half = consult(denoiser, *seen, labels, features=features, learns=learns).half
    return Opinion(half, consult(denoiser, x_t, sigma, labels, value, guidance=guidance, learns=learns).denoised)


def build_discriminator(
    reads: Reads, teacher: Denoiser, student: Denoiser, fake_score: Denoiser | None, seed: int
) -> FeatureDiscriminator | SampleDiscriminator:
    """A discriminator with seeded weights; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if reads == "sample":
            return SampleDiscriminator(student.sample_shape, student.num_classes)
        source = teacher if reads == "teacher" else fake_score
        return FeatureDiscriminator(cast(Denoiser, source).network.feature_channels)


def logit_of(
    ratio: RatioEstimator,
    source: Denoiser | None,
    x_t: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    source_learns: bool,
) -> Tensor:
    """Logits [B] of noised samples; `source` is the network whose features are read, None for the sample itself."""
    features: Asked = "nothing" if source is None else "gradient" if x_t.requires_grad else "value"
    half = consult(source, x_t, sigma, labels, features=features, learns=source_learns).half
    return ratio.logit(half, x_t, sigma, labels)


def logits_of_both(
    ratio: RatioEstimator,
    source: Denoiser,
    x_t: tuple[Tensor, Tensor],
    sigma: Tensor,
    labels: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Logits [B] of noised generated samples and [B] of real ones, by one pass of a network that does not learn.

    It is in evaluation mode, where no sample's features depend on the others; as much arithmetic as two passes, in half
    the kernels. A network that learns from its features gets two: what lies behind the last of them would else go back
    through zeros.

    Args:
        ratio: of the features.
        source: whose features are read.
        x_t: generated and real samples, [B, *sample_shape] each.
        sigma: [B], of both.
        labels: int64 [B], or None.
    """
    both, levels = torch.cat(x_t).detach(), sigma.repeat(2)
    classes = None if labels[0] is None or labels[1] is None else torch.cat((labels[0], labels[1]))
    half = consult(source, both, levels, classes, features="value").half
    fake, real = ratio.logit(half, both, levels, classes).chunk(2)
    return fake, real


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
    kind = real.device.type
    precise = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()  # meta
    with precise:
        return gradient_penalty(logit_at, real, sigma, sigma_data, generator, step).mean()
