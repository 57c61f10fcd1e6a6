"""What a sampler is: moves between noise levels, each a step of its own or noise added back, in VE coordinates."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fdistill.core.random import LatentStreams
from fdistill.core.spec import Described
from fdistill.models.condition import Condition, Conditioned
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.sampling.student_steps import check_grid, renoise

Denoise = Callable[[Tensor, float], Tensor]
"""x [B, *sample_shape] at one noise level for all -> the guided D(x, sigma)."""

Draw = Callable[[], Tensor]
"""Fresh standard normal noise [B, *sample_shape], each sample's from a stream of its own."""


class Sampler(Described, ABC):
    """Follows a grid of noise levels down to samples; a sample is a function of its own latent and condition.

    A subclass gives one move down (`step`) and the levels at which it evaluates the denoiser (`evaluated_levels`);
    where it also adds noise back, `moves` tells the way. Noise levels are Python floats: no device is waited for.
    """

    added_noise = 1.0
    """Standard deviation of noise that is added back, relative to the one that reaches the higher level."""

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        sigmas: Tensor,
        condition: Conditioned = None,
        guidance: float | Guidance = 1.0,
    ) -> Tensor:
        """Samples [B, *sample_shape] in the precision of the noise.

        Args:
            denoiser: D, at every level of the grid.
            noise: standard normal latents, [B, *sample_shape].
            sigmas: noise levels, strictly falling from > 0 to >= 0, [N + 1].
            condition: of the samples; not read by an unconditional denoiser.
            guidance: a scale of classifier-free guidance, or a `Guidance`; 1 for none.

        Raises:
            ValueError: for a grid that does not fall.
        """
        levels, guidance = check_grid(sigmas), Guidance.of(guidance)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return guidance(denoiser, x, sigma, condition)

        draw = LatentStreams(noise).normal if self.is_stochastic else _no_noise
        x = renoise(None, noise, levels[0])
        for here, there in self.moves(levels):
            if there > here:
                x = x + self.added_noise * (there**2 - here**2) ** 0.5 * draw()
            else:
                x = self.step(denoise, x, here, there, draw)
        return x

    @property
    def is_stochastic(self) -> bool:
        """Whether it draws noise beside the latent; if not, it integrates the probability-flow ODE."""
        return False

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, here: float, there: float, draw: Draw) -> Tensor:
        """From x at the level `here` > 0 to `there` in [0, here)."""

    @abstractmethod
    def evaluated_levels(self, here: float, there: float) -> list[float]:
        """The levels > 0 at which `step` evaluates the denoiser, in order."""

    def moves(self, levels: list[float]) -> Iterable[tuple[float, float]]:
        """The way through the grid: (here, there), with there > here where noise is added back."""
        return itertools.pairwise(levels)

    def visits(self, sigmas: Tensor) -> list[float]:
        """Every level at which the denoiser is evaluated on this grid, in order."""
        down = [(here, there) for here, there in self.moves(check_grid(sigmas)) if there < here]
        return [sigma for here, there in down for sigma in self.evaluated_levels(here, there)]

    def evaluations(self, sigmas: Tensor) -> int:
        """Evaluations of an unguided denoiser for one sample on this grid."""
        return len(self.visits(sigmas))


def _no_noise() -> Tensor:
    raise AssertionError("a sampler that draws noise says is_stochastic")


def slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability-flow ODE: (x - D) / sigma (arXiv 2206.00364, equation 3 at s = 1)."""
    return (x - denoise(x, sigma)) / sigma


@torch.no_grad()
def generate(
    sampler: Callable[[Denoiser, Tensor, Tensor, Condition, float | Guidance], Tensor],
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    condition: Conditioned = None,
    guidance: float | Guidance = 1.0,
    batch_size: int = 500,
) -> Tensor:
    """Run a sampler without gradient in pieces of batch_size, on which the result does not depend."""
    condition = Condition.of(condition, denoiser.takes)
    if condition.length not in (None, len(noise)):
        raise ValueError(f"a condition holds one row per sample: expected {len(noise)}, got {condition.length}")
    pieces = zip(noise.split(batch_size), condition.split(batch_size), strict=False)
    return torch.cat([sampler(denoiser, z, sigmas, part, guidance) for z, part in pieces])
