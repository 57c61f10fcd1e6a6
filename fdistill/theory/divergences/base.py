"""What a divergence is: a convex f, the weight of its gradient, and the slopes of that weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.spec import Described


class WeightSlopes(NamedTuple):
    """A weight h and its first two derivatives in r, made scale-free; each as `log_ratio` in shape and dtype."""

    weight: Tensor
    """h(r)"""
    first: Tensor
    """r h'(r)"""
    second: Tensor
    """r^2 h''(r)"""


class FDivergence(Described, ABC):
    """A convex f with f(1) = 0. Writing `f` is enough; override `weight` where a closed form is shorter or safer.

    A constant multiple of f scales the student's gradient; a multiple of (r - 1) added to f changes nothing.
    """

    needs_ratio = True
    """False where the weight is the same for every ratio, so that nobody has to estimate one."""

    @abstractmethod
    def f(self, r: Tensor) -> Tensor:
        """f(r) elementwise for r > 0, made of differentiable torch operations."""

    def weight(self, log_ratio: Tensor) -> Tensor:
        """h(r) = r^2 f''(r) > 0 elementwise, made of differentiable torch operations.

        Here by differentiating `f` twice; it carries a gradient only where `log_ratio` does.
        """
        r, second = second_derivative(self.f, log_ratio, f"f of a divergence is strictly convex: {type(self).__name__}")
        return (r.square() * second).to(log_ratio.dtype)

    def weight_slopes(self, log_ratio: Tensor) -> WeightSlopes:
        """h, r h' and r^2 h'' at ln r, without gradient, by differentiating `weight` in float64 with respect to ln r.

        Raises:
            ValueError: if `weight` cuts the gradient although it depends on the ratio.
        """
        with torch.enable_grad():
            at = log_ratio.detach().double().requires_grad_()
            weight = self.weight(at)
            if self.needs_ratio and not weight.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}.weight carries no gradient: compute it from log_ratio by differentiable "
                    "operations, or set needs_ratio = False where it is constant"
                )
            once = _slope(weight, at)  # dh/d ln r = r h'
            twice = _slope(once, at)  # d^2 h/d(ln r)^2 = r h' + r^2 h''
        return WeightSlopes(*(found.detach().to(log_ratio.dtype) for found in (weight, once, twice - once)))

    def at(self, update: int) -> "FDivergence":
        """The divergence that is minimised at this update of the student, counted from 0; this one, if it is fixed."""
        return self


def second_derivative(function: Callable[[Tensor], Tensor], log_x: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """x = exp(log_x) and function''(x) in float64, with gradient where `log_x` has one.

    float64, since the second derivative at a large x is a difference of close numbers.

    Raises:
        ValueError: if the function is linear; `rule` begins the message and names it.
    """
    differentiable = log_x.requires_grad
    with torch.enable_grad():
        x = (log_x if differentiable else log_x.detach().requires_grad_()).double().exp()
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        if not first.requires_grad:
            raise ValueError(f"{rule} is linear")
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=differentiable)
    return (x, second) if differentiable else (x.detach(), second)


def _slope(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx elementwise; zeros where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]
