"""Samples that the student makes while it trains, in one step or several, and the noised batch made of them."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.sampling import Start, renoise
from fdistill.training.base import MicroBatch
from fdistill.training.discrimination import NoisedInput, Prediction
from fdistill.training.guard import TurnValues

_STEP_STREAM = 0x57E9  # the stream of the step that learns: one for all ranks, so that they do equal work


class NoisedBatch(NamedTuple):
    """A micro-batch of the student's samples, noised once, and what the networks predict there."""

    part: MicroBatch  # which rows of the turn's batch, and the generators of their noise
    x: Tensor  # [B, *sample_shape], with the student's graph where the student learns
    leaf: Tensor  # x without that graph, and with a gradient of its own where the student learns
    x_t: Tensor  # x + sigma eps, with a graph to the leaf where anything is differentiated by it
    sigma: Tensor  # [B]
    condition: Condition  # of B samples, or empty
    dropped: Tensor | None  # bool [B], which of them the fake score sees without it, where it learns that
    latents: Tensor | None  # [B, *sample_shape], of the first step; None where the samples are not new
    first: Tensor | None = None  # what that step made, with the student's graph, where it has a loss of its own
    discriminated: NoisedInput | None = None  # what the discriminator sees
    teacher: Prediction = Prediction()
    fake_score: Prediction = Prediction()
    projected: Tensor | None = None  # what the fake score predicts at its guidance in the score projection

    def values(self) -> TurnValues:
        """What was computed of each sample, without graphs."""
        values = (self.leaf, self.x_t, self.teacher.denoised, self.fake_score.denoised)
        return TurnValues(self.sigma, [value.detach() for value in values if value is not None])


def drawn_steps(seed: int, turn: int, most: int, least: int = 1) -> int:
    """How many steps the student makes in this turn, uniform in least .. most, the same on every rank."""
    if most == least:
        return most
    return least + int(torch.randint(most + 1 - least, (), generator=generator_for(seed, turn, _STEP_STREAM)))


def simulate(
    student: Denoiser,
    latents: Sequence[Tensor],
    levels: Sequence[float],
    condition: Condition,
    learns: bool,
    start: Start = "sigma",
    x: Tensor | None = None,
) -> Tensor:
    """The student's sample after len(latents) steps; the last one with a graph where it learns.

    This is the backward simulation of DMD2 (arXiv 2405.14867): a step is trained on what the steps before it make, as
    in sampling, instead of on noised data.

    Args:
        student: as it learns.
        latents: standard normal [B, *sample_shape], one for each step made.
        levels: noise level of each step.
        condition: of B samples, or empty.
        learns: whether the last step keeps its graph.
        start: what the first step makes of noise.
        x: the sample of the step before these; None where they begin with noise alone.
    """
    last = len(latents) - 1
    for step, (latent, level) in enumerate(zip(latents, levels, strict=False)):
        sigma = torch.full((len(latent),), level, device=latent.device)
        with torch.set_grad_enabled(learns and step == last):
            x = student(renoise(x, latent, level, start), sigma, condition)
    return cast(Tensor, x)
