"""Samples of a policy with the states of its stochastic steps, and the (sample, step) pairs that it learns from."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.objectives.reward_algorithms import Pairs
from fdistill.sampling import GDDIM, Renoising, Start, renoise
from fdistill.sampling.step_law import StepLaw
from fdistill.theory.noise_levels import NoiseLevels

Denoise = Callable[[Tensor, float, slice], Tensor]
"""x of some of the samples at one noise level for all, and which samples they are -> their denoised samples."""


class Rollout(NamedTuple):
    """N samples, and what is kept of the K steps of their way that were stochastic.

    States lie on the CPU in float32, whatever the precision of the networks: one latent a step and sample. The device
    holds those of one micro-batch, and no graph reaches over a step, so that its memory does not grow with the steps.

    Attributes:
        samples: [N, *sample_shape], on the device.
        states: before each stochastic step and after the last one, [K + 1, N, *sample_shape]; empty for K = 0.
        sigma: noise level of each step, [K].
        old_share: of x - D that each kept, [K].
        fresh: standard deviation of each one's noise, [K].
        log_probs: of each step, [K, N].
    """

    samples: Tensor
    states: Tensor
    sigma: Tensor
    old_share: Tensor
    fresh: Tensor
    log_probs: Tensor

    def policy_pairs(self, index: Tensor, advantage: Tensor, condition: Condition, updated: bool) -> Pairs:
        """The pairs with these numbers below K N, on the samples' device.

        Args:
            index: int64 [B] on the CPU; sample number + N times step number.
            advantage: [N] on the CPU.
            condition: of every group of equally many samples, one row.
            updated: whether the policy has changed since, so that the old log-probabilities count.
        """
        n, device = len(self.samples), self.samples.device
        row, step = index % n, index // n
        return Pairs(
            self.states[step, row].to(device),
            self.sigma[step].to(device),
            self.states[step + 1, row].to(device),
            _of_rows(condition, row, n),
            advantage[row].to(device),
            self.old_share[step].to(device),
            self.fresh[step].to(device),
            self.log_probs[step, row].to(device) if updated else None,
        )

    def noised_pairs(
        self, index: Tensor, advantage: Tensor, condition: Condition, levels: NoiseLevels, generator: torch.Generator
    ) -> Pairs:
        """The samples with these numbers modulo N, each noised at a level of its own; the rest as in `policy_pairs`."""
        n, device = len(self.samples), self.samples.device
        row = index % n
        x_0 = self.samples[row.to(device)]
        sigma = levels.sample(len(row), generator, device)
        x = renoise(x_0, torch.randn(x_0.shape, generator=generator, device=device), sigma)
        return Pairs(x, sigma, x_0, _of_rows(condition, row, n), advantage[row].to(device), sigma, sigma)


def _of_rows(condition: Condition, row: Tensor, n: int) -> Condition:
    """The conditions of samples int64 [B] of n, whose groups lie one after the other."""
    if condition.length is None:
        return condition
    first = next(iter(condition.values()))
    return condition.rows((row // (n // condition.length)).to(first.device))


@torch.no_grad()
def roll_out(
    denoise: Denoise,
    latents: Tensor,
    levels: Sequence[float],
    etas: Sequence[float],
    draw: Callable[[], Tensor],
    start: Start,
    at_once: int,
) -> Rollout:
    """Sample by `GDDIM` with a stochasticity of its own in each step.

    Args:
        denoise: the policy, guided.
        latents: standard normal, [N, *sample_shape].
        levels: noise levels, falling strictly from > 0.
        etas: of each step that ends above zero noise; those > 0 follow each other; inf renoises.
        draw: fresh standard normal noise [N, *sample_shape].
        start: what the first step makes of noise.
        at_once: samples that are evaluated together, >= 1.
    """
    x, parts = renoise(None, latents, levels[0], start), range(0, len(latents), at_once)
    most = sum(eta > 0 for eta in etas)  # a tiny eta may add no noise
    states = torch.empty(most + 1 if most else 0, *x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    steps: list[tuple[float, float, float]] = []  # level, old share, fresh
    log_probs: list[Tensor] = []
    for index, (here, there) in enumerate(itertools.pairwise(levels)):
        denoised = torch.cat([denoise(x[at : at + at_once], here, slice(at, at + at_once)) for at in parts])
        if there == 0:
            x = denoised
            break
        sampler = Renoising() if etas[index] == math.inf else GDDIM(etas[index])
        old, fresh = sampler.shares(here, there)
        moved = denoised + old * (x - denoised)
        if fresh > 0:
            moved = moved + fresh * draw()
            shares = (torch.full((len(x),), share, device=x.device) for share in (old, fresh))
            log_probs.append(StepLaw.of(denoised, x, *shares).log_prob(moved).cpu())
            states[len(steps)] = x
            steps.append((here, old, fresh))
            states[len(steps)] = moved
        x = moved
    sigma, old_share, fresh_std = torch.tensor(steps, dtype=torch.float32).reshape(-1, 3).unbind(1)
    probabilities = torch.stack(log_probs) if steps else torch.empty(0, len(latents))
    return Rollout(x, states[: len(steps) + 1 if steps else 0], sigma, old_share, fresh_std, probabilities)
