"""Uni-Instruct: any f-divergence of clean samples through its diffused Fisher form, by the exact four-term gradient.

D_f(p_0||q_0) - D_f(p_T||q_T) = int 1/2 g(t)^2 E_q[psi(r) |Delta|^2] dt with Delta = s_p - s_q, psi = r^2 f''(r)
(arXiv 2505.20755). The authors' released code leaves a term out and has no density ratio; the four terms here are the
gradient of E_q[psi(r) |Delta|^2], which is tested against quadrature.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from fdistill.core.distributed import global_mean
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, inner, required
from fdistill.objectives.normalisers import Normaliser, check_normaliser, normaliser
from fdistill.objectives.score_identity import sim
from fdistill.theory.divergences import FDivergence

Coefficient = Literal["exact", "clipped", "normalised"]
"""What is done to the coefficient of the terms in which the ratio moves."""


class UniInstruct(Objective):
    """2 psi <Delta, u> + (psi - r psi') |Delta|^2 + sg[2 r psi' <Delta, u> - r^2 psi'' |Delta|^2] <sg Delta, x_t>.

    The bracket, times sigma^2 a number without unit, grows with the dimension and is noisy: on images it is clipped or
    brought to a root mean square of 1.
    """

    def __init__(
        self,
        divergence: FDivergence,
        coefficient: Coefficient = "clipped",
        clip: float = 1.0,
        normaliser: Normaliser = "sigma",
    ) -> None:
        """Args:
        divergence: f; for reverse KL the bracket is 0 and no ratio is needed: this is `Fisher`, doubled.
        coefficient: exact; clipped to [-clip, clip]; or normalised to a root mean square of `clip` over the batch.
        clip: > 0.
        normaliser: by noise level or by sample.
        """
        if coefficient not in get_args(Coefficient):
            raise ValueError(f"coefficient is one of {', '.join(get_args(Coefficient))}: got {coefficient!r}")
        if not clip > 0:
            raise ValueError(f"clip of UniInstruct is positive: got {clip}")
        check_normaliser(normaliser)
        self.divergence, self.coefficient, self.clip, self.normaliser = divergence, coefficient, clip, normaliser

    @property
    def needs(self) -> Needs:
        return Needs("gradient", "gradient", ratio=self.divergence.needs_ratio)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        delta = required(at.teacher) - required(at.fake_score)
        projection, length = sim(delta, at), inner(delta, delta)
        if not self.divergence.needs_ratio:
            return self._student(at, 2 * projection + length)
        divergence = self.divergence.at(at.update)
        weight, first, second = divergence.weight_slopes(required(at.log_ratio))
        scale = 1 / global_mean(weight)
        moving = (2 * first * projection - second * length).detach() / at.sigma.square()
        value = 2 * weight * projection + (weight - first) * length
        value = scale * (value + self._bounded(moving, scale) * inner(delta.detach(), at.x_t))
        return self._student(at, value)._replace(sample_weight=weight)

    def _student(self, at: NoisedSamples, value: Tensor) -> StudentLoss:
        return StudentLoss({"student": Term(normaliser(self.normaliser, at) * value / at.x[0].numel())})

    def _bounded(self, moving: Tensor, scale: Tensor) -> Tensor:
        """The coefficient in the units of psi; bounds are relative to the mean weight."""
        if self.coefficient == "exact":
            return moving
        if self.coefficient == "clipped":
            return torch.clamp(moving * scale, -self.clip, self.clip) / scale
        return moving * self.clip / global_mean((moving * scale).square()).sqrt().clamp_min(1e-12)
