"""One Gaussian step for every sampler: some of the old noise is kept, the rest of the level is filled with fresh noise.

In variance-exploding coordinates, with eps = (x - D) / s, the step from s to s' is
x' = D + s' (rho eps + sqrt(1 - rho^2) z). What is kept, rho, is all that tells these samplers apart; no path enters.
"""

import math
from abc import abstractmethod

from torch import Tensor

from fdistill.sampling.base import Denoise, Draw, Sampler


class GaussianStep(Sampler):
    """Base of the samplers of one evaluation a step, by the share rho of the old noise that they keep."""

    @abstractmethod
    def kept(self, ratio: float) -> float:
        """rho in [0, 1] for s'/s = ratio in (0, 1)."""

    def step(self, denoise: Denoise, x: Tensor, here: float, there: float, draw: Draw) -> Tensor:
        denoised = denoise(x, here)
        if there == 0:
            return denoised
        old, fresh = self.shares(here, there)
        x = denoised + old * (x - denoised)
        return x + fresh * draw() if self.is_stochastic else x

    def shares(self, here: float, there: float) -> tuple[float, float]:
        """(a, b) of the step x' = D + a (x - D) + b z from the level `here` > 0 to `there` in (0, here)."""
        rho = self.kept(there / here)
        return there * rho / here, there * math.sqrt((1 - rho) * (1 + rho))

    def evaluated_levels(self, here: float, there: float) -> list[float]:
        return [here]


class Euler(GaussianStep):
    """First order: keeps all noise, which is Euler's step of the probability-flow ODE, and DDIM without eta."""

    def kept(self, ratio: float) -> float:
        return 1.0


class DDIM(GaussianStep):
    """The textbook family between the ODE (eta 0) and the DDPM posterior (eta 1) (arXiv 2010.02502, equation 16).

    Its standard deviation, eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'), is eta s' sqrt(1 - (s'/s)^2) times alpha',
    for every path.
    """

    def __init__(self, eta: float = 0.0) -> None:
        """Args:
        eta: stochasticity in [0, 1]; above 1 more noise would be fresh than the level holds.

        Raises:
            ValueError: for an eta outside.
        """
        _check_eta(eta)
        if eta > 1:
            raise ValueError(f"eta of DDIM lies in [0, 1], as its variance is negative above: got {eta}; use GDDIM")
        self.eta = eta

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def kept(self, ratio: float) -> float:
        return math.sqrt(1 - self.eta**2 * (1 - ratio**2))


class GDDIM(GaussianStep):
    """rho = (s'/s)^(eta^2): any stochasticity on any path (arXiv 2206.05564; eta > 1 as in arXiv 2510.10767).

    Each step follows exactly an SDE whose marginals are those of the ODE: eta 0 is Euler, eta 1 exactly the DDPM
    posterior, eta to infinity `Renoising`.
    """

    def __init__(self, eta: float = 0.0) -> None:
        """Args:
        eta: stochasticity >= 0.

        Raises:
            ValueError: for an eta that is negative or not finite.
        """
        _check_eta(eta)
        self.eta = eta

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def kept(self, ratio: float) -> float:
        return ratio ** (self.eta**2)


class Renoising(GaussianStep):
    """Keeps no noise, x' = D + s' z: what eta to infinity becomes, and how consistency models take several steps."""

    @property
    def is_stochastic(self) -> bool:
        return True

    def kept(self, ratio: float) -> float:
        return 0.0


def _check_eta(eta: float) -> None:
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta is the stochasticity of a step, finite and not negative: got {eta}; inf is Renoising")
