"""Monge gap: how much shorter the way from latents to samples could be (arXiv 2302.04953, squared Euclidean cost)."""

import math
from typing import cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fdistill.evaluation.metrics.blocks import check_features

_STEPS = 10_000  # of Sinkhorn's iteration, which SciPy does not have
_EVERY = 10  # of them between two looks at the marginals
_CONVERGED = 1e-7  # mean relative error of the row sums; the gap is off by its square


def monge_gap(z: Tensor, x: Tensor, epsilon: float = 0.0, labels: Tensor | None = None, strict: bool = True) -> Tensor:
    """Return mean |z_i - x_i|^2 - W(z, x), a float64 scalar >= 0 with a gradient to x and z.

    W is the least mean cost at which the same latents can be coupled with the same samples: over assignments where
    epsilon is 0, else min <P, C> - epsilon H(P) over couplings P, H(P) = -sum P ln P. It is differentiated with the
    optimal P held still (envelope theorem). The entropic gap lies between the exact one plus epsilon ln n and the exact
    one plus 2 epsilon ln n.

    0 says that x = G(z) takes every latent to its sample on the shortest ways that these samples allow, as gradients
    of convex functions do. It is never a score of quality:

    * a constant map has gap 0, so a collapsed student has;
    * in many dimensions a batch of other latents is so far away that nothing is gained by an exchange: with 128 samples
      of 3,072 entries a rotation by 60 degrees has gap 0, and the gap of the laws is 3,072.

    Scale and origin of z do not matter but as a factor: gap(s z + a, t x + b; s t epsilon) = s t gap(z, x; epsilon) for
    s, t > 0. So latents are standard normal here, whatever noise level the student starts from.

    Args:
        z: latents [n, ...], n >= 1.
        x: what the student makes of them [n, ...], as many entries a sample.
        epsilon: of the entropy, in units of a squared distance; 0 is exact.
        labels: integers [n]; latents are exchanged within a class only, for a map of each class. None for one class.
        strict: whether an iteration that has not converged is an error; else its last coupling counts.

    Raises:
        ValueError: for unequal shapes, a NaN, an epsilon that is negative or not finite, or one so small that
            Sinkhorn's iteration does not converge.
    """
    z, x = z.flatten(1), x.flatten(1)
    check_features("latents", z)
    check_features("samples", x)
    if z.shape != x.shape:
        raise ValueError(f"a sample is coupled with its latent: expected {list(z.shape)} of both, got {list(x.shape)}")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon of the Monge gap is finite and not negative: got {epsilon}; 0 is exact")
    classes = [torch.arange(len(x), device=x.device)]
    if labels is not None:
        classes = [(labels == label).nonzero().flatten() for label in labels.unique()]
    gaps = (len(rows) * _gap(z[rows].double(), x[rows].double(), epsilon, strict) for rows in classes)
    return cast(Tensor, sum(gaps)) / len(x)


def _gap(z: Tensor, x: Tensor, epsilon: float, strict: bool) -> Tensor:
    # |z_i|^2 and |x_j|^2 add the same to both means, so that only the product counts, and about the centres: no digits
    # are lost where samples lie far from the origin
    cost = -2 * (z - z.mean(0)) @ (x - x.mean(0)).mT
    own = cost.diagonal()
    if epsilon == 0:
        rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
        return (own - cost[rows, columns]).mean()
    plan, least = _entropic(cost.detach(), epsilon, strict)
    return own.mean() - least - (plan * (cost - cost.detach())).sum()


def _entropic(cost: Tensor, epsilon: float, strict: bool) -> tuple[Tensor, Tensor]:
    """The optimal coupling [n, n] and its cost, by Sinkhorn's iteration in the log domain."""
    log_n = math.log(len(cost))
    columns = torch.zeros_like(cost[0])
    for step in range(_STEPS):
        rows = -epsilon * (((columns - cost) / epsilon).logsumexp(1) + log_n)
        columns = -epsilon * (((rows[:, None] - cost) / epsilon).logsumexp(0) + log_n)
        if step % _EVERY == _EVERY - 1:
            plan = ((rows[:, None] + columns - cost) / epsilon).exp()
            error = float((len(cost) * plan.sum(1) - 1).abs().mean())
            if error < _CONVERGED:
                return plan, rows.mean() + columns.mean()
    if not strict:
        return plan, rows.mean() + columns.mean()
    raise ValueError(
        f"Sinkhorn's iteration: expected marginals within {_CONVERGED:g} after {_STEPS:,} steps, got {error:.1e}; "
        f"raise epsilon {epsilon:g} (costs have a standard deviation of {float(cost.std()):.3g}), or take 0 for the "
        "exact assignment"
    )
