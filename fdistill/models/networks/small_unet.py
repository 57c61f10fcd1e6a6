"""A lean UNet of our own: half the cost of diffusers' at the same width, for where the stock pipeline is not needed."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdistill.models.condition import Condition, Takes, count_classes
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.embeddings import ConditionEmbedding


class SmallUNet(Network):
    """One residual block a level on the way down and up, one in the middle, FiLM conditioning, no attention."""

    def __init__(
        self,
        resolution: int = 8,
        channels: int = 1,
        widths: Sequence[int] = (16, 32),
        num_classes: int | Mapping[str, int] = 0,
        groups: int = 4,
        skip: bool = False,
    ) -> None:
        """Args:
        resolution: side of the square images; halved len(widths) - 1 times.
        channels: image channels.
        widths: channels at each level, from the finest down; each a multiple of `groups`.
        num_classes: 0 for an unconditional network; several sets of classes by their names.
        groups: of the group normalisation.
        skip: adds the input to the output, for networks that predict eps on a variance-preserving path: at high noise
            their input is nearly eps, so that little is left to learn there (arXiv 2508.16154). EDM preconditioning
            has such a path already.
        """
        super().__init__()
        check_halving(resolution, len(widths))
        self.sample_shape, self.skip = (channels, resolution, resolution), skip
        self.feature_channels = tuple(widths)
        embedding_width = 4 * widths[0]
        self.condition = ConditionEmbedding(embedding_width, num_classes)
        self.num_classes = count_classes(self.takes)
        self.input = nn.Conv2d(channels, widths[0], 3, padding=1)
        inward = [widths[0], *widths]
        self.down = nn.ModuleList(
            _ResidualBlock(inward[level], width, embedding_width, groups) for level, width in enumerate(widths)
        )
        self.middle = _ResidualBlock(widths[-1], widths[-1], embedding_width, groups)
        outward = [widths[-1], *reversed(widths)]
        self.up = nn.ModuleList(
            _ResidualBlock(outward[step] + width, width, embedding_width, groups)
            for step, width in enumerate(reversed(widths))
        )
        self.output = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)
        )

    @property
    def takes(self) -> Takes:
        return self.condition.takes

    def units(self) -> list[nn.Module]:
        return [*super().units(), self.middle]

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        embedding = self.condition(noise, condition)
        hidden, features = self.input(x), []
        for level, block in enumerate(self.down):
            hidden = block(F.avg_pool2d(hidden, 2) if level else hidden, embedding)
            features.append(hidden)
        return Encoding(tuple(features), (tuple(features), embedding, x))

    def decode(self, encoding: Encoding) -> Tensor:
        skips, embedding, x = encoding.state
        hidden = self.middle(skips[-1], embedding)
        for step, (block, skip) in enumerate(zip(self.up, reversed(skips), strict=True)):
            if step:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = block(torch.cat([hidden, skip], dim=1), embedding)
        output = self.output(hidden)
        return output + x if self.skip else output


def check_halving(resolution: int, levels: int) -> None:
    """Raises ValueError where `resolution` cannot be halved levels - 1 times."""
    if levels < 1 or resolution < 1 or resolution % 2 ** (levels - 1):
        raise ValueError(
            f"a UNet of {levels} levels halves the image {levels - 1} times: expected a resolution divisible by "
            f"{2 ** max(levels - 1, 0)}, got {resolution}; change the resolution or the number of levels"
        )


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels_in)
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * channels_out)
        self.norm_mid = nn.GroupNorm(groups, channels_out, affine=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.first(F.silu(self.norm_in(x)))
        scale, shift = self.condition(F.silu(condition))[:, :, None, None].chunk(2, dim=1)
        hidden = self.second(F.silu(torch.addcmul(shift, self.norm_mid(hidden), 1 + scale)))
        return self.skip(x) + hidden
