"""The variance-preserving path whose rate of noise has a linear root: Stable Diffusion's (arXiv 2112.10752)."""

import math

from torch import Tensor

from fdistill.theory.paths.base import FromRate


class ScaledLinear(FromRate):
    """sqrt(beta(t)) linear: the limit of infinitely many steps of the "scaled_linear" betas of diffusers.

    N discrete betas from b_0 to b_1, sqrt(b) equally spaced, are beta(t) / N for beta_min = N b_0, beta_max = N b_1;
    the product of the first k factors 1 - b is alpha^2 at t = k / N up to O(1 / N). The defaults are 1000 steps from
    .00085 to .012. A network that was trained on the discrete steps wants them exactly: `DDPMPath`.
    """

    def __init__(self, beta_min: float = 0.85, beta_max: float = 12.0) -> None:
        """Args:
        beta_min: rate at t = 0, > 0.
        beta_max: rate at t = 1, > beta_min.
        """
        if not 0 < beta_min < beta_max:
            raise ValueError(f"ScaledLinear needs 0 < beta_min < beta_max: got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def rate(self, t: Tensor) -> Tensor:
        return self._root(t).square()

    def integral(self, t: Tensor) -> Tensor:
        return t * self._mean_square(self._root(t))

    def time_of_integral(self, integral: Tensor) -> Tensor:
        cube = (
            self.beta_min**1.5 + 3 * self._slope * integral
        )  # of the root at t: int beta = (root^3 - first^3) / 3 slope
        return integral / self._mean_square(cube.pow(1 / 3))

    def _root(self, t: Tensor) -> Tensor:
        return math.sqrt(self.beta_min) + self._slope * t

    def _mean_square(self, root: Tensor) -> Tensor:
        """Mean of beta between t = 0 and the time of a root."""
        first = math.sqrt(self.beta_min)
        return (root.square() + root * first + first**2) / 3

    @property
    def _slope(self) -> float:
        return math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
