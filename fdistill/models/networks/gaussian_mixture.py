"""The exact denoiser of an isotropic Gaussian mixture: an analytic teacher, and the oracle of the tests."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.models.condition import Condition
from fdistill.models.networks.base import Encoding, Network


class GaussianMixture(Network):
    """E[x_0 | x] for x = x_0 + sigma eps, x_0 from the mixture. Use it under `X0Prediction(VarianceExploding())`.

    Its noise input is sigma itself. It has no parameters, and the sample itself is its only feature.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        stds: Sequence[float],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Args:
        means: centre of each component, [M][d].
        stds: standard deviation of each component, [M], >= 0.
        weights: share of each component, [M], > 0, normalised here; None for equal shares.
        """
        super().__init__()
        centres = torch.tensor(means, dtype=torch.float64)
        spreads = torch.tensor(stds, dtype=torch.float64)
        shares = torch.tensor([1.0] * len(centres) if weights is None else weights, dtype=torch.float64)
        if centres.ndim != 2 or spreads.shape != centres.shape[:1] or shares.shape != centres.shape[:1]:
            raise ValueError(
                "a mixture has means [M][d], stds [M], weights [M]: got shapes "
                f"{tuple(centres.shape)}, {tuple(spreads.shape)}, {tuple(shares.shape)}"
            )
        if (spreads < 0).any() or (shares <= 0).any():
            raise ValueError(f"stds are >= 0 and weights > 0: got {list(stds)} and {shares.tolist()}")
        self.sample_shape, self.num_classes, self.feature_channels = (centres.shape[1],), 0, (centres.shape[1],)
        self.means: Tensor
        self.register_buffer("means", centres, persistent=False)
        self.variances: Tensor
        self.register_buffer("variances", spreads.square(), persistent=False)
        self.log_shares: Tensor
        self.register_buffer("log_shares", (shares / shares.sum()).log(), persistent=False)

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        return Encoding((x,), (x, noise))

    def decode(self, encoding: Encoding) -> Tensor:
        x, sigma = encoding.state
        offset, variance, log_joint = self._components(x, sigma)
        shrink = (self.variances.to(x.dtype) / variance)[..., None]
        component_means = self.means.to(x.dtype) + shrink * offset
        return (log_joint.softmax(dim=1)[..., None] * component_means).sum(dim=1)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln density of the sigma-marginal at x [B, d], sigma [B] >= 0; [B]."""
        return self._components(x, sigma)[2].logsumexp(dim=1)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n clean samples [n, d] float32 and their component indices [n], with a CPU generator."""
        labels = torch.multinomial(self.log_shares.exp().cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.sample_shape[0], generator=generator)
        spread = self.variances.sqrt().float().cpu()[labels, None]
        return self.means.float().cpu()[labels] + spread * noise, labels

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset from each centre [B, M, d], variance of each noisy component [B, M], ln joint density [B, M]."""
        offset = x[:, None] - self.means.to(x.dtype)
        variance = self.variances.to(x.dtype) + sigma[:, None].square()
        log_density = -offset.square().sum(dim=2) / (2 * variance) - self.sample_shape[0] / 2 * (
            variance.log() + math.log(2 * math.pi)
        )
        return offset, variance, self.log_shares.to(x.dtype) + log_density
