"""Samples that the student makes while it trains: in one step or several, from fresh latents or a teacher's pairs."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.models.denoiser import Denoiser
from fdistill.sampling import Start, renoise

_STEP_STREAM = 0x57E9  # the stream of the step that learns: one for all ranks, so that they do equal work


class Generated(NamedTuple):
    """Student samples, and the noise they are matched at."""

    x: Tensor  # [B, *sample_shape], with the student's graph where the student learns
    noise: Tensor  # [B, *sample_shape], standard normal
    sigma: Tensor  # [B]
    labels: Tensor | None  # int64 [B]
    fake_labels: Tensor | None = None  # those that the fake score sees: some are "no class" where it learns that
    latents: Tensor | None = None  # [B, *sample_shape], of the first step; None where the samples are not new

    def noised(self, x: Tensor) -> Tensor:
        """x + sigma eps for any samples x of these noise levels."""
        return x + self.sigma.reshape(-1, *[1] * (x.ndim - 1)) * self.noise


def check_levels(sigma_init: float, renoise_levels: Sequence[float]) -> tuple[float, ...]:
    """All noise levels of the student, falling.

    Raises:
        ValueError: where they do not fall or one is not positive.
    """
    if not 0 < sigma_init < math.inf:
        raise ValueError(f"sigma_init is the noise level the student starts from and positive: got {sigma_init}")
    levels = (float(sigma_init), *map(float, renoise_levels))
    if any(not 0 < low < high for high, low in itertools.pairwise(levels)):
        raise ValueError(
            "renoise_levels are the noise levels of a student's further steps: expected positive numbers that fall "
            f"from sigma_init {sigma_init}, got {list(renoise_levels)}"
        )
    return levels


def drawn_steps(seed: int, turn: int, most: int) -> int:
    """How many steps the student makes in this turn, uniform in 1 .. most, the same on every rank."""
    if most == 1:
        return 1
    return 1 + int(torch.randint(most, (), generator=generator_for(seed, turn, _STEP_STREAM)))


def simulate(
    student: Denoiser,
    latents: Sequence[Tensor],
    levels: Sequence[float],
    labels: Tensor | None,
    learns: bool,
    start: Start = "sigma",
) -> Tensor:
    """The student's sample after len(latents) steps; the last one with a graph where it learns.

    This is the backward simulation of DMD2 (arXiv 2405.14867): a step is trained on what the steps before it make, as
    in sampling, instead of on noised data.

    Args:
        student: as it learns.
        latents: standard normal [B, *sample_shape], one for each step made.
        levels: noise level of each step.
        labels: int64 [B], or None.
        learns: whether the last step keeps its graph.
        start: what the first step makes of noise.
    """
    x = None
    last = len(latents) - 1
    for step, (latent, level) in enumerate(zip(latents, levels, strict=False)):
        sigma = torch.full((len(latent),), level, device=latent.device)
        with torch.set_grad_enabled(learns and step == last):
            x = student(renoise(x, latent, level, start), sigma, labels)
    return cast(Tensor, x)


def dropped_labels(labels: Tensor, no_class: int, share: float, generator: torch.Generator) -> Tensor:
    """labels, of which each one is "no class" with probability `share`."""
    dropped = torch.rand(len(labels), generator=generator, device=labels.device) < share
    return torch.where(dropped, no_class, labels)
