"""A sampler whose every step is followed by Langevin steps at the level it reached."""

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from fdistill.sampling.base import Denoise, Draw, Sampler
from fdistill.sampling.gaussian_step import Euler


class PredictorCorrector(Sampler):
    """After each step of a predictor x += d s(x) + sqrt(2 d) z, d = 2 (r |z| / |s|)^2 (arXiv 2011.13456, algorithm 4).

    Published steps measure both norms over the batch, on which our samples do not depend: theirs of a batch of one are
    ours. Where a score has few dimensions (below some tens) its norm tells too much of the sample and may vanish, which
    spreads the samples; norms="expected" then takes what the norms are on average where noise hides all data,
    |z| = sqrt(n) and |s| = sqrt(n) / sigma, so that d = 2 (r sigma)^2. d never exceeds sigma^2, where a step reaches
    the denoised sample. A correction costs one evaluation; there is none at noise level 0.
    """

    def __init__(
        self,
        predictor: Sampler | None = None,
        corrections: int = 1,
        signal_to_noise: float = 0.16,
        norms: Literal["sample", "expected"] = "sample",
    ) -> None:
        """Args:
        predictor: the sampler that is corrected; None for Euler.
        corrections: Langevin steps at each level, >= 1.
        signal_to_noise: r > 0, the length of the score's part of a step relative to the noise's.
        norms: those of each "sample", or "expected".

        Raises:
            ValueError: for a number outside its range, or other norms.
        """
        if corrections < 1:
            raise ValueError(
                f"corrections at each level are at least 1: got {corrections}; else use the predictor alone"
            )
        if not 0 < signal_to_noise < math.inf:
            raise ValueError(f"signal_to_noise is positive and finite: got {signal_to_noise}")
        self.predictor, self.corrections, self.signal_to_noise = predictor or Euler(), corrections, signal_to_noise
        if norms not in ("sample", "expected"):
            raise ValueError(f'norms of PredictorCorrector are "sample" or "expected": got {norms!r}')
        self.norms, self.added_noise = norms, self.predictor.added_noise

    @property
    def is_stochastic(self) -> bool:
        return True

    def moves(self, levels: list[float]) -> Iterable[tuple[float, float]]:
        return self.predictor.moves(levels)

    def step(self, denoise: Denoise, x: Tensor, here: float, there: float, draw: Draw) -> Tensor:
        x = self.predictor.step(denoise, x, here, there, draw)
        for _ in range(self.corrections if there > 0 else 0):
            score, z = (denoise(x, there) - x) / there**2, draw()
            length = self._length(z, score, there)
            x = x + length * score + (2 * length) ** 0.5 * z
        return x

    def _length(self, z: Tensor, score: Tensor, sigma: float) -> float | Tensor:
        """d, one for all or [B, 1, ...]."""
        if self.norms == "expected":
            return min(2 * (self.signal_to_noise * sigma) ** 2, sigma**2)
        return (2 * (self.signal_to_noise * _norm(z) / _norm(score)).square()).clamp(max=sigma**2)

    def evaluated_levels(self, here: float, there: float) -> list[float]:
        return [*self.predictor.evaluated_levels(here, there), *[there] * (self.corrections if there > 0 else 0)]


def _norm(x: Tensor) -> Tensor:
    """Of each sample, [B, 1, ...]."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
