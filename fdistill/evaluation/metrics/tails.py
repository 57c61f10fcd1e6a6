"""Tails: do samples lose, or grow, the heavy tails of what they imitate? Diagnosed along random directions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import NoValueError, blocks, check_features

DIRECTIONS = 64
"""Directions measured at a time: 26 MB for 50,000 samples."""
ROUNDING = 1e-12
"""Standard deviation in units of the largest feature that is rounding alone."""


class Tails(NamedTuple):
    """Two float64 scalars, the largest over the directions."""

    excess_kurtosis: Tensor  # 0 for a Gaussian, 3 for a Laplace marginal, in [-2, n)
    projection: Tensor  # distance from the mean in units of std sqrt(2 ln n): tends to 1 for a Gaussian


def tail_diagnostics(features: Tensor, num_directions: int, generator: torch.Generator) -> Tails:
    """Return the largest excess kurtosis and the farthest sample over random unit directions (arXiv 2501.07741).

    Each projection is centred and divided by the sample's own standard deviation in that direction (1 / n form), so
    that shape alone counts: neither a translation nor a scale changes the numbers, and a law that shrank as a whole
    is left to other metrics. Both numbers grow with n and with the number of directions: compare only at equal ones,
    along the same directions, that is with a generator of the same seed.

    Args:
        features: [n, d], n >= 2, not constant.
        num_directions: >= 1; drawn uniformly from the sphere.
        generator: on the CPU.

    Raises:
        ValueError: for a wrong shape, fewer than two samples, a NaN, constant features, or no direction.
    """
    check_features("features", features, minimum=2)
    if num_directions < 1:
        raise ValueError(f"num_directions counts from 1: expected >= 1, got {num_directions}")
    directions = torch.randn(num_directions, features.shape[1], generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(features.device)
    centre = sum(block.sum(0) for block in blocks(features)) / len(features)
    largest = features.detach().abs().max().double()
    kurtosis, farthest = [], []
    for part in directions.split(DIRECTIONS):
        along = torch.cat([(block - centre) @ part.T for block in blocks(features)])
        std = along.square().mean(0).sqrt()
        if bool((std <= ROUNDING * largest).any()):
            raise NoValueError("features vary: expected a standard deviation > 0, got 0; all samples are the same")
        along /= std
        kurtosis.append(along.pow(4).mean(0).max() - 3)
        farthest.append(along.abs().max() / math.sqrt(2 * math.log(len(features))))
    return Tails(torch.stack(kurtosis).max(), torch.stack(farthest).max())


class TailDiagnostics(FeatureMetric):
    """`tail_diagnostics` of equally many generated and real samples, along the same directions.

    Returns {"excess_kurtosis", "projection"} of the generated samples and {"real_excess_kurtosis", "real_projection"}
    of the real ones: lighter tails read as values below the real ones.

    Args:
        num_directions: >= 1.
        seed: of the directions.
        reset_real_features: whether `reset()` forgets the real samples too.
        beside_real: False for the generated samples' numbers alone.
    """

    def __init__(
        self, num_directions: int = 1000, seed: int = 0, reset_real_features: bool = True, beside_real: bool = True
    ) -> None:
        super().__init__(reset_real_features)
        self.num_directions, self.seed, self.alone = num_directions, seed, not beside_real
        self.least = (1, int(beside_real))
        self.gives = Tails._fields + (tuple(f"real_{name}" for name in Tails._fields) if beside_real else ())

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        if not self.alone and len(generated) != len(real):
            raise ValueError(
                f"tails are compared at equal numbers: expected {len(real)} generated samples, got {len(generated)}; "
                "they grow with the number"
            )
        sides = (generated,) if self.alone else (generated, real)
        found = [tail_diagnostics(side, self.num_directions, generator_for(self.seed)) for side in sides]
        return dict(zip(self.gives, [value for tails in found for value in tails], strict=True))
