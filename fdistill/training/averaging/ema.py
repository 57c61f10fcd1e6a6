"""Exponential moving average of one network, in float32, apart from the optimiser."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fdistill.core.distributed import local
from fdistill.models.adapters import adapter_layers, own_parameters, sharing_copy
from fdistill.models.denoiser import Denoiser


class EMA(nn.Module):
    """Holds the averaged copy as `average`; update it after the network's own steps only.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon forgotten.
    bf16 weights would never move at decay .9999, so the copy is float32 whatever the network is.
    """

    def __init__(self, network: Denoiser, decay: float) -> None:
        """Args:
        network: what to average; copied. Of one with adapters the average shares the base and averages the factors.
        decay: share of the old average that stays per update, in [0, 1).
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay lies in [0, 1): got {decay}")
        self.decay = decay
        copied = sharing_copy(network) if adapter_layers(network) else copy.deepcopy(network).float()
        self.average: Denoiser = copied.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, updates_before: int) -> None:
        """Move towards the network's present parameters, both sharded in the same way or not; buffers are copied."""
        decay = min(self.decay, (1 + updates_before) / (10 + updates_before))
        average, current = ([local(p) for p in own_parameters(net).values()] for net in (self.average, network))
        get_ema_multi_avg_fn(decay)(average, [v.to(a.dtype) for a, v in zip(average, current, strict=True)], None)
        for averaged, buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            averaged.copy_(buffer)

    def train(self, mode: bool = True) -> "EMA":
        """The average stays in evaluation mode."""
        return super().train(False)
