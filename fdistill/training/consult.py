"""Asking a denoiser at noised samples for exactly what somebody reads: features, a value, a graph to the input."""

from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.models.denoiser import Denoiser, HalfDenoised
from fdistill.models.guidance import Guidance
from fdistill.objectives.base import Asked
from fdistill.training.at_rest import weights_at_rest


class Opinion(NamedTuple):
    """What a denoiser says; None where it was not asked."""

    half: HalfDenoised | None = None
    denoised: Tensor | None = None


def consult(
    denoiser: Denoiser | None,
    x_t: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    value: Asked = "nothing",
    features: Asked = "nothing",
    guidance: float | Guidance = 1.0,
    learns: bool = False,
) -> Opinion:
    """Evaluate a denoiser at x_t [B, *sample_shape], sigma [B].

    Args:
        denoiser: None where there is none, which nobody asks then.
        x_t: with a graph to the generated samples where something is differentiated by them.
        sigma: noise levels.
        labels: int64 [B]; not read by an unconditional denoiser.
        value: whether the denoised sample is asked for, and with a graph to x_t.
        features: the same of the encoder's taps.
        guidance: of the value.
        learns: whether everything keeps its graph to the denoiser's weights.
    """
    if value == features == "nothing":
        return Opinion()
    denoiser = cast(Denoiser, denoiser)
    labels = labels if denoiser.num_classes else None
    with nullcontext() if learns else weights_at_rest(denoiser):
        if features == "nothing":
            with torch.set_grad_enabled(learns or value == "gradient"):
                return Opinion(None, Guidance.of(guidance)(denoiser, x_t, sigma, labels))
        with torch.set_grad_enabled(learns or "gradient" in (value, features)):
            half = denoiser.encode(x_t, sigma, labels)
        if value == "nothing":
            return Opinion(half)
        with torch.set_grad_enabled(learns or value == "gradient"):
            return Opinion(half, Guidance.of(guidance).push(denoiser.finish(half), denoiser, x_t, sigma, labels))
