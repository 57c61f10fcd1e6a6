"""Two networks that share the noise levels between them: neither pays for what the other has to learn."""

import math

import torch
from torch import Tensor, nn

from fdistill.models.condition import Condition, Takes
from fdistill.models.networks.base import Encoding, Network


class TwoExperts(Network):
    """`low` where the noise input is below `split`, `high` elsewhere; each sample costs one expert, and teaches one.

    One network for all noise levels learns low noise at the cost of high noise (the see-saw of arXiv 2508.16154); two
    experts have no weights to quarrel about. Which samples are whose is read from the device, once an evaluation.
    """

    def __init__(self, low: Network, high: Network, split: float) -> None:
        """Args:
        low: expert of low noise.
        high: expert of high noise, of the same samples, classes and feature channels.
        split: noise input at which `high` begins. It is what the preconditioning makes of a sigma,
            `preconditioning.coefficients(torch.tensor([sigma])).noise`: ln(sigma) / 4 for EDM, time_scale * t for the
            predictions on a path. All of them rise with sigma.

        Raises:
            ValueError: where the experts differ in shape, or split is not finite.
        """
        super().__init__()
        if not math.isfinite(split):
            raise ValueError(f"split is a noise input and finite: got {split}; give that of a sigma between the grid's")
        for name in ("sample_shape", "takes", "feature_channels"):
            expected, found = getattr(low, name), getattr(high, name)
            if expected != found:
                raise ValueError(
                    f"two experts agree in {name}: expected that of low, {expected}, got {found} of high; change one"
                )
        self.low, self.high, self.split = low, high, split
        self.sample_shape, self.num_classes = low.sample_shape, low.num_classes
        self.feature_channels = low.feature_channels
        self.knows_no_class = low.knows_no_class and high.knows_no_class

    @property
    def takes(self) -> Takes:
        return self.low.takes

    def units(self) -> list[nn.Module]:
        return []  # which expert is evaluated differs from rank to rank, and a block is gathered by all

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        is_low = noise < self.split
        sides = [(self.low, is_low.nonzero()[:, 0]), (self.high, (~is_low).nonzero()[:, 0])]
        sides = [(expert, rows) for expert, rows in sides if len(rows)] or sides[:1]
        parts = [(expert, expert.encode(x[rows], noise[rows], condition.rows(rows))) for expert, rows in sides]
        places = torch.cat([rows for _, rows in sides]).argsort()
        taps = zip(*(encoding.features for _, encoding in parts), strict=True)
        return Encoding(tuple(torch.cat(tap)[places] for tap in taps), (parts, places))

    def decode(self, encoding: Encoding) -> Tensor:
        parts, places = encoding.state
        return torch.cat([expert.decode(part) for expert, part in parts])[places]
