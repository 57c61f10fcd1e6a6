"""A sampler whose every step is followed by Langevin steps at the level it reached."""

import math
from collections.abc import Iterable

from torch import Tensor

from fdistill.samplers.base import Denoise, Draw, Sampler
from fdistill.samplers.gaussian_step import Euler


class PredictorCorrector(Sampler):
    """After each step of a predictor x += d s(x) + sqrt(2 d) z, d = 2 (r |z| / |s|)^2 (arXiv 2011.13456, algorithm 4).

    Norms are those of each sample, so that a sample does not depend on its batch. d never exceeds sigma^2, where a step
    reaches the denoised sample, since the score of few dimensions may vanish. A correction costs one evaluation; there
    is none at noise level 0.
    """

    def __init__(self, predictor: Sampler | None = None, corrections: int = 1, signal_to_noise: float = 0.16) -> None:
        """Args:
        predictor: the sampler that is corrected; None for Euler.
        corrections: Langevin steps at each level, >= 1.
        signal_to_noise: r > 0, the length of the score's part of a step relative to the noise's, up to sqrt(2).

        Raises:
            ValueError: for a number outside its range.
        """
        if corrections < 1:
            raise ValueError(
                f"corrections at each level are at least 1: got {corrections}; else use the predictor alone"
            )
        if not 0 < signal_to_noise < math.inf:
            raise ValueError(f"signal_to_noise is positive and finite: got {signal_to_noise}")
        self.predictor, self.corrections, self.signal_to_noise = predictor or Euler(), corrections, signal_to_noise
        self.added_noise = self.predictor.added_noise

    @property
    def is_stochastic(self) -> bool:
        return True

    def moves(self, levels: list[float]) -> Iterable[tuple[float, float]]:
        return self.predictor.moves(levels)

    def step(self, denoise: Denoise, x: Tensor, here: float, there: float, draw: Draw) -> Tensor:
        x = self.predictor.step(denoise, x, here, there, draw)
        for _ in range(self.corrections if there > 0 else 0):
            score, z = (denoise(x, there) - x) / there**2, draw()
            length = 2 * (self.signal_to_noise * _norm(z) / _norm(score)).square()
            length = length.clamp(max=there**2)
            x = x + length * score + (2 * length).sqrt() * z
        return x

    def asks(self, here: float, there: float) -> list[float]:
        return [*self.predictor.asks(here, there), *[there] * (self.corrections if there > 0 else 0)]


def _norm(x: Tensor) -> Tensor:
    """Of each sample, [B, 1, ...]."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
