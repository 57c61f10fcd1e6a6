"""Match scores instead of densities: the Fisher side (SiD, SIM, SiDA, Fisher), through both networks' inputs.

With delta = D_p - D_q and u = D_q - x (both sigma^2 times a difference of scores) and exact D_q, three facts carry
every method here. F = E_q |s_p - s_q|^2 is the Fisher divergence, and F_sg the same with samples that do not move:

* E_q <delta, u> = 0 for every function delta of x_t (the score-projection identity);
* 2 <delta, u> + |delta|^2 descends F, divided by sigma^4 (arXiv 2404.04057 with alpha 1/2);
* <delta, u> alone descends F_sg / 2 (SIM, arXiv 2410.16794).
"""

from torch import Tensor

from fdistill.objectives.adversarial import (
    AdversarialWeight,
    adversarial_term,
    check_weight,
    is_on,
    without_idle_adversary,
)
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, inner, required
from fdistill.objectives.normalisers import Normaliser, check_normaliser, normaliser


def sim(direction: Tensor, at: NoisedSamples) -> Tensor:
    """<direction, D_q - x>, [B], the sum over entries; `direction` keeps its graph to x_t."""
    return inner(direction, required(at.fake_score if at.projected is None else at.projected) - at.x)


class SiD(Objective):
    """Score identity distillation (arXiv 2404.04057): <delta, (D_p - x) - alpha delta>.

    Its expected gradient is that of (1 - alpha) F + (alpha - 1/2) F_sg, so alpha = 1/2 is the Fisher divergence and
    alpha = 1 is SIM with a quadratic distance; alpha above 1 climbs F a little, and works best in the paper.
    """

    def __init__(self, alpha: float = 1.2, normaliser: Normaliser = "sample") -> None:
        """Args:
        alpha: 1.2 and 1 in the paper, 1/2 for the exact gradient of the Fisher divergence.
        normaliser: by sample as in the paper, or by noise level, which keeps the gradient exact.
        """
        check_normaliser(normaliser)
        self.alpha, self.normaliser = alpha, normaliser

    @property
    def needs(self) -> Needs:
        return Needs("gradient", "gradient")

    def loss(self, at: NoisedSamples) -> StudentLoss:
        delta = required(at.teacher) - required(at.fake_score)
        value = sim(delta, at) + (1 - self.alpha) * inner(delta, delta)  # D_p - x = u + delta
        return StudentLoss({"student": Term(normaliser(self.normaliser, at) * value / at.x[0].numel())})


class Fisher(SiD):
    """Half the Fisher divergence E_q |s_p - s_q|^2 by its exact gradient: SiD with alpha = 1/2."""

    def __init__(self, normaliser: Normaliser = "sigma") -> None:
        """Args:
        normaliser: by noise level, which keeps the gradient exact, or by sample.
        """
        super().__init__(0.5, normaliser)


class SiDA(SiD):
    """SiD with an adversarial term (arXiv 2410.14919): alpha = 1; the discriminator reads the fake score's encoder."""

    def __init__(
        self,
        adversarial_weight: AdversarialWeight = 1e-3,
        alpha: float = 1.0,
        normaliser: Normaliser = "sample",
    ) -> None:
        """Args:
        adversarial_weight: of softplus(-logit), >= 0.
        alpha: as of `SiD`.
        normaliser: by sample, or by noise level.
        """
        check_weight("adversarial_weight", adversarial_weight)
        super().__init__(alpha, normaliser)
        self.adversarial_weight = adversarial_weight

    @property
    def needs(self) -> Needs:
        return super().needs._replace(logit=is_on(self.adversarial_weight))

    def at(self, update: int) -> Objective:
        return without_idle_adversary(self, update)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        matching = super().loss(at)
        if is_on(self.adversarial_weight):
            matching.terms["adversarial"] = adversarial_term(required(at.logit), self.adversarial_weight, at.update)
        return matching


class SIM(Objective):
    """Score implicit matching (arXiv 2410.16794) with d(y) = sqrt(|y|^2 / entries + c^2) - c (Pseudo-Huber).

    With y = D_q - D_p the expected gradient of -<d'(y), u> is that of E[d(y)] over samples that do not move. d' keeps
    its graph: detaching it loses the part of the gradient that goes through x_t.
    """

    def __init__(self, c: float = 0.03, normaliser: Normaliser = "uniform") -> None:
        """Args:
        c: where d turns from quadratic to linear, as a root mean square over the entries, > 0.
        normaliser: by noise level or sample; "uniform" since d' is a direction already.
        """
        if not c > 0:
            raise ValueError(f"c of SIM is the width of the Pseudo-Huber distance and positive: got {c}")
        check_normaliser(normaliser)
        self.c, self.normaliser = c, normaliser

    @property
    def needs(self) -> Needs:
        return Needs("gradient", "gradient")

    def loss(self, at: NoisedSamples) -> StudentLoss:
        y, entries = required(at.fake_score) - required(at.teacher), at.x[0].numel()
        length = (inner(y, y) / entries + self.c**2).sqrt()  # root mean square, so that c does not depend on the size
        value = -sim(y, at) / (length * entries)
        return StudentLoss({"student": Term(normaliser(self.normaliser, at) * value)})
