"""The non-saturating adversarial pair; the discriminator's optimum is the log density ratio ln p/q."""

import copy
import math
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fdistill.core.spec import Described
from fdistill.objectives.base import Needs, NoisedSamples, Objective, StudentLoss, Term, required
from fdistill.theory.schedules import Schedule, value_at


def discriminator_loss(fake_logit: Tensor, real_logit: Tensor) -> Tensor:
    """mean softplus(l_fake) + mean softplus(-l_real); 2 ln 2 where the two do not differ."""
    return F.softplus(fake_logit.float()).mean() + F.softplus(-real_logit.float()).mean()


class Balance(Described):
    """An adversarial weight that follows the gradients: the adversarial one keeps a share of the others' norm.

    In each update the weight is `share` |g| / |g_adv|, with the norms of the gradients at the generated samples of a
    micro-batch: g_adv of the adversarial term at weight 1, g of all other terms together. The share is free of
    the samples' size, on which constant weights depend: recipes take .3 for 64 entries and .001 for 3,072. The weight
    is 0 while g is 0, as in the first update of a fake score that starts as the teacher. Weights of this form: arXiv
    2012.09841, of a layer there.
    """

    def __init__(self, share: float) -> None:
        """Args:
        share: adversarial over all other gradients' norm, > 0.
        """
        if not 0 < share < math.inf:
            raise ValueError(f"share is finite and above 0: got {share}; leave the term out by adversarial_weight 0")
        self.share = share


AdversarialWeight = float | Schedule | Balance


def adversarial_term(logit: Tensor, weight: AdversarialWeight, update: int) -> Term:
    """softplus(-l) of generated samples, [B]: the term DMD2 adds to the student (arXiv 2405.14867)."""
    value = F.softplus(-logit.to(torch.promote_types(logit.dtype, torch.float32)))
    return Term(value, share=weight.share) if isinstance(weight, Balance) else Term(value, value_at(weight, update))


class _WithAdversary(Protocol):
    adversarial_weight: AdversarialWeight


_Adversarial = TypeVar("_Adversarial", bound=_WithAdversary)


def without_idle_adversary(objective: _Adversarial, update: int) -> _Adversarial:
    """The objective without its adversarial term where a schedule gives it no weight at this update, else itself.

    So an update where the logit counts for nothing does not compute it.
    """
    weight = objective.adversarial_weight
    if not isinstance(weight, Schedule) or weight.at(update) != 0:
        return objective
    now = copy.copy(objective)
    now.adversarial_weight = 0.0
    return now


class Adversarial(Objective):
    """The adversarial term alone: a GAN on noised samples (diffusion GAN, arXiv 2206.02262), as a baseline.

    With the optimal discriminator l = ln p/q its expected gradient is that of the divergence with weight
    h(r) = 1 / (1 + r), the softened reverse KL.
    """

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        """Args:
        weight: of softplus(-logit), > 0.
        """
        check_weight("weight", weight)
        if isinstance(weight, Balance) or not is_on(weight):
            got = "a Balance with no other term" if isinstance(weight, Balance) else "0"
            raise ValueError(f"the weight of a purely adversarial objective is > 0: got {got}, which trains nothing")
        self.weight = weight

    @property
    def needs(self) -> Needs:
        return Needs(logit=True)

    def loss(self, at: NoisedSamples) -> StudentLoss:
        return StudentLoss({"adversarial": adversarial_term(required(at.logit), self.weight, at.update)})


def check_weight(name: str, weight: AdversarialWeight) -> None:
    """Raises ValueError for a constant weight that is negative or not finite."""
    if not isinstance(weight, Schedule | Balance) and not 0 <= weight < math.inf:
        raise ValueError(f"{name} is finite and not negative: got {weight}")


def is_on(weight: AdversarialWeight) -> bool:
    """Whether a term of this weight is computed at all: a schedule's and a balance's always are."""
    return isinstance(weight, Schedule | Balance) or weight > 0
