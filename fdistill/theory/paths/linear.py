"""The variance-preserving path of a linear rate of noise (arXiv 2011.13456)."""

from torch import Tensor

from fdistill.theory.paths.base import FromRate


class VPLinear(FromRate):
    """beta(t) linear from beta_min to beta_max: the VP-SDE (arXiv 2011.13456)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        """Args:
        beta_min: rate at t = 0, > 0.
        beta_max: rate at t = 1, > beta_min.
        """
        if not 0 < beta_min < beta_max:
            raise ValueError(f"VPLinear needs 0 < beta_min < beta_max: got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        return (self.beta_max - self.beta_min) * t.square() / 2 + self.beta_min * t

    def time_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
