"""From the terms of an objective to the gradient at each generated sample, and to the numbers that are logged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdistill.objectives import NoisedSamples, StudentLoss

_LOGGED_AS = {"student": "matching"}  # the matching term's gradient goes by what it does


class StudentGradient(NamedTuple):
    """Gradient of the student's loss at what it generated; the terms, and numbers for the loggers."""

    x: Tensor  # [B, *sample_shape]
    regression: Tensor | None  # [P, *sample_shape], at the samples of the pairs' latents
    first: Tensor | None  # [B, *sample_shape], at what the first of several steps made
    losses: dict[str, Tensor]
    log: dict[str, Tensor]


def student_gradient(loss: StudentLoss, at: NoisedSamples) -> StudentGradient:
    """The gradient of each term at the samples, summed; the student's own backward pass is made once, from it."""
    places = [at.x, *(None if part is None else part.x for part in (at.regression, at.first))]
    leaves = [place for place in places if place is not None]
    total: list[Any] = [torch.zeros_like(at.x), *[None] * (len(leaves) - 1)]
    losses, log = {}, {"image_gradient/matching": at.x.new_zeros(()), "image_gradient/adversarial": at.x.new_zeros(())}
    for name, term in sorted(loss.terms.items(), key=lambda item: item[1].share is not None):
        mean = term.value.mean()
        losses[f"loss/{name}"] = mean.detach()
        if term.share is None and term.weight == 0:  # a schedule's zero
            continue
        gradients = torch.autograd.grad(mean, leaves, retain_graph=True, allow_unused=True)
        weight: float | Tensor = term.weight
        if term.share is not None:
            others, own = _norm(total), _norm(gradients)
            weight = log[f"{name}_weight"] = torch.where(own > 0, term.share * others / own, torch.zeros_like(own))
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                scaled = gradient if term.share is None and weight == 1 else weight * gradient
                total[index] = scaled if total[index] is None else total[index] + scaled
        log[f"image_gradient/{_LOGGED_AS.get(name, name)}"] = weight * sum(g.norm() for g in gradients if g is not None)
    found = iter(total)
    at_places: list[Any] = [None if place is None else next(found) for place in places]
    return StudentGradient(at_places[0], at_places[1], at_places[2], losses, log)


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Of all entries together."""
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()


def ratio_log(weight: Tensor, log_ratio: Tensor) -> dict[str, Tensor]:
    """Numbers that tell whether the ratio and the weights h(r) of this batch can be trusted."""
    return {
        "weight/mean": weight.mean(),
        "weight/max": weight.max(),
        "ratio/log_mean": log_ratio.mean(),
        "ratio/ess": weight.sum().square() / (weight.square().sum() * len(weight)),
    }


def balance(log: dict[str, Tensor]) -> dict[str, float]:
    """Adversarial over matching gradient norm; nothing where one is 0: a first fake score is the teacher itself."""
    matching, adversarial = (float(log.get(f"image_gradient/{term}", 0)) for term in ("matching", "adversarial"))
    return {"image_gradient/balance": adversarial / matching} if matching and adversarial else {}
