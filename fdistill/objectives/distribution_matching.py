"""Descend h(r) (s_q - s_p) at the noised sample, r = p/q: the KL side of distribution matching, and its methods.

grad D_f(p_t||q_t) = -E[h(r) (s_p - s_q)(x_t) dx_t/dtheta] (f-distill, arXiv 2502.15681), and in denoised form
s_p - s_q = (D_p - D_q) / sigma^2. The fake score stands for s_q.
"""

import torch
from torch import Tensor

from fdistill.objectives.adversarial import (
    AdversarialWeight,
    adversarial_term,
    check_weight,
    is_on,
    without_idle_adversary,
)
from fdistill.objectives.base import (
    Needs,
    NoisedSamples,
    Objective,
    StudentLoss,
    Term,
    expand,
    per_sample_mean,
    required,
)
from fdistill.objectives.log_ratio import unit_mean
from fdistill.objectives.normalisers import Normaliser, check_normaliser, normaliser
from fdistill.theory.divergences import Bregman, FDivergence, ReverseKL, UniformlySkewedJensenShannon, skewed_weight
from fdistill.theory.schedules import Schedule, value_at


@torch.no_grad()
def matching_direction(
    denoised_teacher: Tensor, denoised_fake: Tensor, weight: Tensor | float, normaliser: Tensor | float
) -> Tensor:
    """normaliser * weight * (D_q - D_p): the gradient of the loss at each generated sample, [B, *sample_shape].

    weight is h(r), [B]; normaliser is [B]. With normaliser 1/sigma^2 the mean over the batch of <direction,
    dx/dtheta> is exactly the gradient of the f-divergence at noise level sigma.
    """
    scale = torch.as_tensor(weight * normaliser, dtype=denoised_fake.dtype, device=denoised_fake.device)
    return expand(scale, denoised_fake) * (denoised_fake - denoised_teacher)


def di(x: Tensor, direction: Tensor) -> Tensor:
    """[B], half the mean square of a detached direction in value, and that direction (over the entries) in gradient.

    This is DMD's 1/2 |x - sg[x - g]|^2 without its rounding of x - (x - g).
    """
    moved = per_sample_mean(direction * (x - x.detach()))
    return moved + per_sample_mean(direction.square()) / 2


class FDistill(Objective):
    """f-distill (arXiv 2502.15681): any f-divergence, with a weight h(r) that is normalised over the global batch.

    At each noise level the expected gradient is that of D_f(p_t||q_t) up to the normaliser. An adversarial term
    may be added.
    """

    def __init__(
        self,
        divergence: FDivergence,
        adversarial_weight: AdversarialWeight = 0.0,
        normaliser: Normaliser = "sample",
    ) -> None:
        """Args:
        divergence: what is minimised between teacher and student; it may change with the student's updates.
        adversarial_weight: of softplus(-logit); 0 computes none.
        normaliser: step size by sample (DMD) or by noise level alone (below about 16 dimensions).
        """
        check_weight("adversarial_weight", adversarial_weight)
        check_normaliser(normaliser)
        self.divergence, self.adversarial_weight, self.normaliser = divergence, adversarial_weight, normaliser

    @property
    def needs(self) -> Needs:
        return Needs("value", "value", ratio=self.divergence.needs_ratio, logit=is_on(self.adversarial_weight))

    def at(self, update: int) -> Objective:
        return without_idle_adversary(self, update)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        weight = self.sample_weight(at)
        scale = normaliser(self.normaliser, at)
        teacher, fake_score = required(at.teacher), required(at.fake_score)
        direction = matching_direction(teacher, fake_score, 1.0 if weight is None else unit_mean(weight), scale)
        terms = {"student": Term(di(at.x, direction))}
        if is_on(self.adversarial_weight):
            terms["adversarial"] = adversarial_term(required(at.logit), self.adversarial_weight, at.update)
        return StudentLoss(terms, weight)

    def sample_weight(self, at: NoisedSamples) -> Tensor | None:
        """h(r), [B]; None where the divergence needs no ratio."""
        if not self.divergence.needs_ratio:
            return None
        return self.divergence.at(at.update).weight(required(at.log_ratio))


class DiffInstruct(FDistill):
    """Diff-Instruct (arXiv 2305.18455): reverse KL with weight 1 on the difference of denoised samples."""

    def __init__(self, normaliser: Normaliser = "uniform") -> None:
        """Args:
        normaliser: step size of each noise level or sample.
        """
        super().__init__(ReverseKL(), 0.0, normaliser)


class VSD(FDistill):
    """Variational score distillation (arXiv 2305.16213): reverse KL with weight 1 - alpha_bar on the noise's error."""

    def __init__(self) -> None:
        super().__init__(ReverseKL(), 0.0, "vsd")


class SDS(Objective):
    """Score distillation sampling (DreamFusion, arXiv 2209.14988): `VSD` whose fake score is that of a point at x.

    The entropy of the student is missing from what it descends, so that every sample goes to a mode of the teacher.
    Only the student learns, in every turn.
    """

    def __init__(self, normaliser: Normaliser = "vsd") -> None:
        """Args:
        normaliser: step size of each noise level or sample; DreamFusion's is that of VSD.
        """
        check_normaliser(normaliser)
        self.normaliser = normaliser

    @property
    def needs(self) -> Needs:
        return Needs("value")

    def loss(self, at: NoisedSamples) -> StudentLoss:
        direction = matching_direction(required(at.teacher), at.x, 1.0, normaliser(self.normaliser, at))
        return StudentLoss({"student": Term(di(at.x, direction))})


class DMD(FDistill):
    """DMD (arXiv 2311.18828): reverse KL, and regression to what the teacher's ODE makes of the same latents.

    The paper measures the regression with LPIPS; here it is the mean squared error.
    """

    def __init__(self, regression_weight: float | Schedule = 0.25, normaliser: Normaliser = "sample") -> None:
        """Args:
        regression_weight: of the mean squared error to the pairs, > 0.
        normaliser: step size by sample or noise level.
        """
        super().__init__(ReverseKL(), 0.0, normaliser)
        check_weight("regression_weight", regression_weight)
        if not is_on(regression_weight):
            raise ValueError(
                f"DMD without its regression is DiffInstruct: regression_weight is > 0, got {regression_weight}"
            )
        self.regression_weight = regression_weight

    @property
    def needs(self) -> Needs:
        return super().needs._replace(pairs=True)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        pairs = required(at.regression)
        error = per_sample_mean((pairs.x - pairs.target).square())
        matching = super().loss(at)
        terms = matching.terms | {"regression": Term(error, value_at(self.regression_weight, at.update))}
        return matching._replace(terms=terms)


class DMD2(FDistill):
    """DMD2 (arXiv 2405.14867): reverse KL and an adversarial term, no regression."""

    def __init__(self, adversarial_weight: AdversarialWeight = 1e-3, normaliser: Normaliser = "sample") -> None:
        """Args:
        adversarial_weight: of softplus(-logit), >= 0.
        normaliser: step size by sample or noise level.
        """
        super().__init__(ReverseKL(), adversarial_weight, normaliser)


class ScoreOfMixture(FDistill):
    """Score-of-mixture distillation (arXiv 2502.09609): skewed Jensen-Shannon with a random skew for each sample.

    The expected gradient is that of the mean divergence over the skews: `UniformlySkewedJensenShannon`.
    """

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        adversarial_weight: AdversarialWeight = 0.0,
        normaliser: Normaliser = "sample",
    ) -> None:
        """Args:
        low: smallest skew, >= 0; 0 is forward KL.
        high: largest skew, <= 1; 1 is reverse KL.
        adversarial_weight: of softplus(-logit); 0 computes none.
        normaliser: step size by sample or noise level.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"the skews of ScoreOfMixture are 0 <= low < high <= 1: got {low} and {high}")
        super().__init__(UniformlySkewedJensenShannon(low, high), adversarial_weight, normaliser)
        self.low, self.high = low, high

    def sample_weight(self, at: NoisedSamples) -> Tensor:
        drawn = torch.rand(at.sigma.shape, generator=at.generator, device=at.sigma.device)
        return skewed_weight(required(at.log_ratio), self.low + (self.high - self.low) * drawn)


class BregmanMatching(FDistill):
    """Bregman density-ratio matching (arXiv 2510.16983): the divergence is given by a convex h of rho = q/p."""

    def __init__(
        self, divergence: Bregman, adversarial_weight: AdversarialWeight = 0.0, normaliser: Normaliser = "sample"
    ) -> None:
        """Args:
        divergence: the Bregman divergence of rho from 1.
        adversarial_weight: of softplus(-logit); 0 computes none.
        normaliser: step size by sample or noise level.
        """
        super().__init__(divergence, adversarial_weight, normaliser)
