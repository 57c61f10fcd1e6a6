"""The law of one Gaussian step, x' ~ N(mean, std^2 I): what a policy gradient needs of a sampler."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class StepLaw(NamedTuple):
    """N(mean, std^2 I) for each sample, in variance-exploding coordinates.

    Logarithms and divergences are means over the entries of a sample, in float32 at least: ratios of two steps then do
    not overflow for large samples. Times the number of entries they are those of the whole sample.

    Attributes:
        mean: [B, *sample_shape].
        std: [B], > 0. A step without noise, or to zero noise, has no density.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, denoised: Tensor, x: Tensor, old: Tensor, fresh: Tensor) -> "StepLaw":
        """The step from x where the denoiser predicts `denoised`, both [B, *sample_shape].

        Args:
            denoised: D(x).
            x: where the step begins.
            old: share of x - D that is kept, [B], of `GaussianStep.shares`.
            fresh: standard deviation of the fresh noise, [B], > 0.
        """
        return cls(denoised + _wide(old, x) * (x - denoised), fresh)

    def in_coordinates(self, alpha: float | Tensor) -> "StepLaw":
        """The same step in those of a path, x_t = alpha x, at its end: alpha is the signal scale there."""
        return StepLaw(alpha * self.mean, alpha * self.std)

    def log_prob(self, x: Tensor) -> Tensor:
        """Mean over entries of ln N(x; mean, std^2) at the fixed x [B, *sample_shape]; [B]."""
        mean, std = _precise(self.mean), _precise(self.std)
        off = (_precise(x).detach() - mean).square().flatten(1).mean(1)
        return -off / (2 * std.square()) - std.log() - math.log(2 * math.pi) / 2

    def kl(self, other: Tensor) -> Tensor:
        """Mean over entries of KL(this || N(other, std^2 I)) = |mean - other|^2 / (2 std^2); [B]."""
        off = (_precise(self.mean) - _precise(other)).square().flatten(1).mean(1)
        return off / (2 * _precise(self.std).square())


def _wide(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
