"""Stratified division of a data set into a training and a held-out split."""

import torch
from torch import Tensor

from fdistill.core.random import generator_for


def stratified_split(labels: Tensor, num_held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose held-out samples so that each class has its proportional share, to within one sample.

    Shares are rounded by the largest remainder. A class never gives away its last training sample, so fewer than
    ``num_held_out`` samples are held out where classes are too small.

    Args:
        labels: [N] int64 class indices >= 0.
        num_held_out: Number of samples to hold out, in [0, N).
        seed: Chooses which samples of a class are held out.

    Returns:
        Indices of the training samples and of the held-out samples, both ascending.
    """
    sizes = labels.bincount()
    shares = sizes.double() * num_held_out / len(labels)
    quota = torch.minimum(shares.floor().long(), (sizes - 1).clamp(min=0))
    remainder = (shares - quota).masked_fill(quota >= sizes - 1, -1.0)
    for c in remainder.argsort(descending=True, stable=True)[: num_held_out - int(quota.sum())].tolist():
        quota[c] += int(remainder[c] > 0)
    order = torch.randperm(len(labels), generator=generator_for(seed))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for c, n in enumerate(quota.tolist()):
        held_out[order[labels[order] == c][:n]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
