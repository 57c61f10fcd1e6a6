"""Networks evaluated at noised inputs, and the discriminator of their features: logits, instance noise, penalty."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Behind, Denoiser, HalfDenoised
from fdistill.models.guidance import Guidance
from fdistill.objectives.base import PredictionLevel, expand
from fdistill.objectives.log_ratio import FeatureDiscriminator, RatioEstimator, SampleDiscriminator, gradient_penalty
from fdistill.training.at_rest import weights_at_rest

Reads = Literal["teacher", "fake_score", "sample", "none"]
"""Encoder features of a network, the noised sample itself (small data), or no discriminator at all."""


_BEHIND: dict[PredictionLevel, Behind] = {"nothing": "nothing", "value": "value", "gradient": "graph"}


class NoisedInput(NamedTuple):
    """What a network is evaluated at: noised samples, their noise levels, their conditions."""

    x_t: Tensor  # [B, *sample_shape]
    sigma: Tensor  # [B]
    condition: Condition  # of B samples, or empty

    def with_instance_noise(self, tau: float, generator: torch.Generator, highest: float = math.inf) -> "NoisedInput":
        """x_t + tau n at the level sqrt(sigma^2 + tau^2): instance noise (arXiv 1610.04490), in units of the data.

        Real and generated samples get it by the same law. The optimal logit becomes the log ratio of the laws noised at
        the higher level, of which more is common to both.

        Args:
            tau: standard deviation of the noise; at 0 the input comes back as it is, and nothing is drawn.
            generator: of n.
            highest: noise level beyond which no network knows its input: samples near it get less noise, up to it.

        Raises:
            ValueError: where tau is negative, which only a schedule can be here.
        """
        if tau < 0:
            raise ValueError(f"instance_noise is not negative at any update: got {tau}; correct its schedule")
        if tau == 0:
            return self
        noise = torch.randn(self.x_t.shape, generator=generator, device=self.x_t.device)
        variance = self.sigma.square()
        if highest < math.inf:
            added = (highest**2 - variance).clamp(0, tau**2)
            return self._replace(x_t=self.x_t + expand(added.sqrt(), self.x_t) * noise, sigma=(variance + added).sqrt())
        return self._replace(x_t=self.x_t + tau * noise, sigma=(variance + tau**2).sqrt())


class Prediction(NamedTuple):
    """What a denoiser computes of a noised input; None where nothing reads it."""

    half: HalfDenoised | None = None  # its encoder half, with the features
    denoised: Tensor | None = None  # [B, *sample_shape]


def evaluate(
    denoiser: Denoiser,
    at: NoisedInput,
    value: PredictionLevel = "nothing",
    features: PredictionLevel = "nothing",
    guidance: float | Guidance = 1.0,
    learns: bool = False,
    features_at: NoisedInput | None = None,
) -> Prediction:
    """Evaluate a denoiser for exactly what is read: features, a value, a graph to the input.

    Args:
        denoiser: the network; an unconditional one does not read the condition.
        at: with a graph to the generated samples where something is differentiated by them.
        value: whether the denoised sample is read, and with a graph to x_t.
        features: the same of the encoder's taps.
        guidance: of the value.
        learns: whether everything keeps its graph to the denoiser's weights.
        features_at: what the features are of; a second evaluation where it is another input.
    """
    if value == features == "nothing":
        return Prediction()
    if features != "nothing" and features_at is not None and features_at.x_t is not at.x_t:
        half = evaluate(denoiser, features_at, features=features, learns=learns).half
        return Prediction(half, evaluate(denoiser, at, value, guidance=guidance, learns=learns).denoised)
    x_t, sigma, condition = at
    with nullcontext() if learns else weights_at_rest(denoiser):
        if features == "nothing":
            with torch.set_grad_enabled(learns or value == "gradient"):
                return Prediction(None, Guidance.of(guidance)(denoiser, x_t, sigma, condition))
        with torch.set_grad_enabled(learns or "gradient" in (value, features)):
            behind: Behind = "graph" if learns and value == "value" else _BEHIND[value]
            half = denoiser.encode(x_t, sigma, condition, behind=behind)
        if value == "nothing":
            return Prediction(half)
        with torch.set_grad_enabled(learns or value == "gradient"):
            return Prediction(half, Guidance.of(guidance).push(denoiser.finish(half), denoiser, x_t, sigma, condition))


def build_discriminator(
    reads: Reads, teacher: Denoiser, student: Denoiser, fake_score: Denoiser | None, seed: int
) -> FeatureDiscriminator | SampleDiscriminator:
    """A discriminator with seeded weights; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if reads == "sample":
            return SampleDiscriminator(student.sample_shape, student.takes)
        source = teacher if reads == "teacher" else fake_score
        return FeatureDiscriminator(cast(Denoiser, source).network.feature_channels)


def logit_of(ratio: RatioEstimator, source: Denoiser | None, at: NoisedInput, source_learns: bool) -> Tensor:
    """Logits [B] of noised samples; `source` is the network whose features are read, None for the sample itself."""
    if source is None:
        return ratio.logit(None, *at)
    features: PredictionLevel = "gradient" if at.x_t.requires_grad else "value"
    return ratio.logit(evaluate(source, at, features=features, learns=source_learns).half, *at)


def logits_of_both(
    ratio: RatioEstimator, source: Denoiser, fake: NoisedInput, real: NoisedInput
) -> tuple[Tensor, Tensor]:
    """Logits [B] of noised generated samples and [B] of real ones, by one pass of a network that does not learn.

    It is in evaluation mode, where no sample's features depend on the others; as much arithmetic as two passes, in half
    the kernels. A network that learns from its features gets two: what lies behind the last of them would else go back
    through zeros.

    Args:
        ratio: of the features.
        source: whose features are read.
        fake: generated samples.
        real: as many real ones.
    """
    x_t, sigma = torch.cat((fake.x_t, real.x_t)).detach(), torch.cat((fake.sigma, real.sigma))
    both = NoisedInput(x_t, sigma, Condition.cat((fake.condition, real.condition)))
    of_fake, of_real = logit_of(ratio, source, both, source_learns=False).chunk(2)
    return of_fake, of_real


def r1_penalty(
    logit_at: Callable[[Tensor], Tensor],
    real: NoisedInput,
    sigma_data: float,
    generator: torch.Generator,
    step: float,
) -> Tensor:
    """The mean gradient penalty at noised real samples, a scalar.

    It is computed in float32 under mixed precision too: bf16 logits differ by .4 % or not at all, and the penalty
    divides their difference by the step.
    """
    kind = real.x_t.device.type
    precise = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()  # meta
    with precise:
        return gradient_penalty(logit_at, real.x_t, real.sigma, sigma_data, generator, step).mean()
