"""How a teacher learns from rewards: DDPO, Flow-GRPO, MixGRPO, DiffusionNFT; each a loss of (sample, step) pairs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fdistill.core.spec import Described
from fdistill.models.condition import Condition
from fdistill.objectives.advantages import RunningAdvantages, group_advantages
from fdistill.objectives.negative_aware import negative_aware_loss, optimality
from fdistill.objectives.policy_gradient import is_clipped, policy_loss
from fdistill.sampling.step_law import StepLaw
from fdistill.theory.noise_levels import LogNormal


class Pairs(NamedTuple):
    """A micro-batch of (sample, step) pairs, in the order in which they were shuffled.

    Attributes:
        x: what the network sees, [B, *sample_shape].
        sigma: at which noise level, [B].
        target: where the step went, or the sample that was noised; [B, *sample_shape].
        condition: of B samples, or empty.
        advantage: of each one's sample, [B].
        old_share: of x - D that the step kept, [B]; not read by DiffusionNFT.
        fresh: standard deviation of the step's noise, [B]; not read by DiffusionNFT.
        old_log_prob: of the step when it was made, [B]; None where the policy is still the one that made it.
    """

    x: Tensor
    sigma: Tensor
    target: Tensor
    condition: Condition
    advantage: Tensor
    old_share: Tensor
    fresh: Tensor
    old_log_prob: Tensor | None = None


class PairLoss(NamedTuple):
    """Terms of B pairs, each [B]: what is descended, the divergence from the reference, and what is only logged."""

    policy: Tensor
    kl: Tensor | None
    watched: dict[str, Tensor]


class RewardAlgorithm(Described, ABC):
    """A way to learn from rewards. Its rollout makes `group` samples of each condition of a batch."""

    def __init__(self, group: int, updates: int, kl_weight: float) -> None:
        """Args:
        group: samples of each condition, >= 1.
        updates: optimiser steps of one rollout, each on its own share of the pairs, >= 1.
        kl_weight: of the divergence from the reference, >= 0; 0 keeps no reference.
        """
        for name, value in (("group", group), ("updates", updates)):
            if value < 1:
                raise ValueError(f"{name} of a rollout is a number >= 1: got {value}")
        if not 0 <= kl_weight < float("inf"):
            raise ValueError(f"kl_weight is finite and not negative: got {kl_weight}")
        self.group, self.updates, self.kl_weight = group, updates, kl_weight

    @abstractmethod
    def etas(self, turn: int, steps: int) -> list[float]:
        """Stochasticity of each of the `steps` steps of this turn's rollout that end above zero noise."""

    def check(self, steps: int) -> None:
        """Raises ValueError where a rollout of so many steps that end above zero noise is not enough."""

    def advantages(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What makes advantages [N] of rewards [N] and keys [N]; with a state of its own for each run."""
        return group_advantages

    @abstractmethod
    def loss(self, at: Pairs, denoised: Tensor, reference: Tensor | None, old: Tensor | None) -> PairLoss:
        """The terms of these pairs.

        Args:
            at: the pairs.
            denoised: D, [B, *sample_shape], with a graph.
            reference: the frozen reference's D; None where kl_weight is 0.
            old: the D that made the samples, where it is a network of its own.
        """


class PolicyGradient(RewardAlgorithm):
    """Base of the algorithms that raise the probability of the steps of good samples; these are stochastic."""

    def __init__(self, eta: float, group: int, updates: int, clip: float, kl_weight: float) -> None:
        super().__init__(group, updates, kl_weight)
        if not eta > 0:
            raise ValueError(
                f"a policy gradient needs steps with a density: expected eta > 0, got {eta}; DiffusionNFT needs none"
            )
        if not clip > 0:
            raise ValueError(f"clip is how far a ratio of probabilities may leave 1, > 0: got {clip}; inf for none")
        self.eta, self.clip = eta, clip

    def etas(self, turn: int, steps: int) -> list[float]:
        return [self.eta] * steps

    def check(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(
                "a policy gradient needs steps that end above zero noise, as the last one has no density: "
                "expected a grid of at least 2 steps, got 1"
            )

    def loss(self, at: Pairs, denoised: Tensor, reference: Tensor | None, old: Tensor | None) -> PairLoss:
        law = StepLaw.of(denoised, at.x, at.old_share, at.fresh)
        log_prob = law.log_prob(at.target)
        before = log_prob.detach() if at.old_log_prob is None else at.old_log_prob
        kl = None if reference is None else law.kl(StepLaw.of(reference, at.x, at.old_share, at.fresh).mean)
        watched = {"clipped": is_clipped(log_prob, before, at.advantage, self.clip).float()}
        return PairLoss(policy_loss(log_prob, before, at.advantage, self.clip), kl, watched)


class DDPO(PolicyGradient):
    """Importance-weighted policy gradient with per-condition running statistics (arXiv 2305.13301)."""

    def __init__(
        self,
        eta: float = 1.2,
        group: int = 1,
        updates: int = 1,
        clip: float = 1e-4,
        buffer: int = 16,
        kl_weight: float = 0.0,
    ) -> None:
        """Args:
        eta: stochasticity of the rollouts, > 0; inf renoises, as students of several steps do.
        group: samples of each condition of a batch, >= 1.
        updates: optimiser steps of one rollout, >= 1; with 1 the ratio is exactly 1 and nothing is clipped.
        clip: of the ratio of mean log-probabilities, > 0.
        buffer: last rewards of each condition that its statistics are of, >= 2.
        kl_weight: >= 0; 0 keeps no reference.
        """
        super().__init__(eta, group, updates, clip, kl_weight)
        self.buffer = buffer
        RunningAdvantages(buffer)  # an impossible buffer is refused now

    def advantages(self) -> Callable[[Tensor, Tensor], Tensor]:
        return RunningAdvantages(self.buffer)


class FlowGRPO(PolicyGradient):
    """Policy gradient with advantages inside each group of one condition, and a divergence (arXiv 2505.05470).

    The divergence holds the states fixed: its gradient does not see that an early step changes later divergences.
    """

    def __init__(
        self, eta: float = 1.2, group: int = 24, updates: int = 1, clip: float = 1e-4, kl_weight: float = 0.04
    ) -> None:
        """Args:
        eta: stochasticity of the rollouts, > 0; the paper's a is eta sqrt(2). inf renoises, as students of several
            steps do.
        group: samples of each condition, >= 2.
        updates: optimiser steps of one rollout, >= 1; with 1 the ratio is exactly 1 and nothing is clipped.
        clip: of the ratio of mean log-probabilities, > 0.
        kl_weight: >= 0; 0 keeps no reference.
        """
        super().__init__(eta, group, updates, clip, kl_weight)
        _check_group(group)


class MixGRPO(FlowGRPO):
    """Flow-GRPO whose rollouts are stochastic inside a sliding window of steps alone (arXiv 2507.21802).

    It learns from the window's steps, and computes gradients for these alone. The window goes from the first steps to
    the last ones and begins again.
    """

    def __init__(
        self,
        eta: float = 1.2,
        window: int = 4,
        stride: int = 1,
        every: int = 25,
        group: int = 24,
        updates: int = 1,
        clip: float = 1e-4,
        kl_weight: float = 0.0,
    ) -> None:
        """Args:
        eta: stochasticity inside the window, > 0.
        window: steps that it holds, >= 1.
        stride: steps by which it moves, >= 1.
        every: turns after which it moves, >= 1.
        group, updates, clip, kl_weight: see FlowGRPO.
        """
        super().__init__(eta, group, updates, clip, kl_weight)
        for name, value in (("window", window), ("stride", stride), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} of the sliding window is a number >= 1: got {value}")
        self.window, self.stride, self.every = window, stride, every

    def etas(self, turn: int, steps: int) -> list[float]:
        last = steps - self.window
        places = [*range(0, last, self.stride), last]
        first = places[turn // self.every % len(places)]
        return [self.eta if first <= step < first + self.window else 0.0 for step in range(steps)]

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.window > steps:
            raise ValueError(
                f"the window lies inside the steps that end above zero noise: expected at most {steps}, got a window "
                f"of {self.window}; take a shorter one or more steps"
            )


class DiffusionNFT(RewardAlgorithm):
    """Learns on the forward process from deterministic rollouts of an old policy (arXiv 2509.16117)."""

    def __init__(
        self,
        beta: float = 1.0,
        level_mean: float = -0.8,
        level_std: float = 1.2,
        draws: int = 2,
        keep_old: float = 0.5,
        group: int = 24,
        updates: int = 1,
        kl_weight: float = 0.0,
    ) -> None:
        """Args:
        beta: > 0; smaller is a larger step away from the old policy.
        level_mean: of ln sigma, at which samples are noised.
        level_std: its standard deviation, > 0.
        draws: noise levels drawn for each sample, >= 1.
        keep_old: share of its own weights that the old policy keeps in each turn, in [0, 1).
        group: samples of each condition, >= 2.
        updates: optimiser steps of one rollout, >= 1.
        kl_weight: of |D - D_reference|^2, mean over entries, >= 0; 0 keeps no reference.
        """
        super().__init__(group, updates, kl_weight)
        _check_group(group)
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta of DiffusionNFT is positive and finite: got {beta}")
        if draws < 1:
            raise ValueError(f"draws is a number of noise levels a sample, >= 1: got {draws}")
        if not 0 <= keep_old < 1:
            raise ValueError(f"keep_old is a share in [0, 1): got {keep_old}")
        self.noise_levels = LogNormal(level_mean, level_std)
        self.beta, self.draws, self.keep_old = beta, draws, keep_old

    def etas(self, turn: int, steps: int) -> list[float]:
        return [0.0] * steps

    def loss(self, at: Pairs, denoised: Tensor, reference: Tensor | None, old: Tensor | None) -> PairLoss:
        assert old is not None
        weight = optimality(at.advantage)
        kl = None if reference is None else (denoised - reference).float().square().flatten(1).mean(1)
        return PairLoss(negative_aware_loss(denoised, old, at.target, weight, self.beta), kl, {})


def _check_group(group: int) -> None:
    if group < 2:
        raise ValueError(
            f"advantages compare the samples of one condition: expected a group of at least 2, got {group}; "
            "DDPO compares with earlier rollouts instead"
        )
