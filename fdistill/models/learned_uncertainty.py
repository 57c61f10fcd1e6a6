"""A weight of the denoising loss that is learned with the network."""

import torch
from torch import Tensor, nn

from fdistill.models.networks.embeddings import FourierEmbedding
from fdistill.theory.loss_weights import EDMWeight, LossWeight


class LearnedUncertainty(nn.Module, LossWeight):
    """EDM's weight times e^-u(sigma), plus u(sigma): every noise level comes to weigh the same (arXiv 2312.02696).

    u is linear in a constant and in Fourier features of ln(sigma) / 4. Trained together with the denoiser it tends to
    the logarithm of the EDM-weighted loss at sigma. It starts at 0, which is EDM's weight.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        """Args:
        sigma_data: standard deviation of the data over all entries, > 0.
        """
        super().__init__()
        self.known = EDMWeight(sigma_data)
        self.features = FourierEmbedding(channels=32, max_frequency=12.0)  # waves of ln(sigma) from 2 to 25 long
        self.slopes, self.level = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.zeros(()))

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """u at sigma [B]."""
        return (self.features(sigma.log() / 4) * self.slopes).sum(dim=1) + self.level

    def eps(self, snr: Tensor) -> Tensor:
        return self.known.eps(snr) * (-self.uncertainty(snr.rsqrt())).exp()

    def penalty(self, sigma: Tensor) -> Tensor:
        return self.uncertainty(sigma)
