"""Rewards of images that need no download: brightness, channels, smoothness, JPEG size, sums, a function of yours."""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fdistill.data import GenerativeDataModule
from fdistill.models.condition import Conditioned
from fdistill.objectives.advantages import SMALLEST_STD
from fdistill.objectives.rewards import Reward
from fdistill.sampling.pictures import to_pixels

_QUALITY = 95  # of JPEG, as in DDPO


class Brightness(Reward):
    """Mean over all entries: in [-1, 1] for images, white is 1."""

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B]; the condition is not read."""
        return x.flatten(1).mean(1)


class ChannelTarget(Reward):
    """-(mean of each channel - target)^2, summed over channels: 0 where an image has the asked colour on average."""

    def __init__(self, target: Sequence[float]) -> None:
        """Args:
        target: one number for each channel, in [-1, 1].
        """
        super().__init__()
        if not target or not all(-1 <= value <= 1 for value in target):
            raise ValueError(f"target is one mean in [-1, 1] for each channel: got {list(target)}")
        self.target = list(target)

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B] <= 0; raises ValueError for images of another number of channels."""
        if x.ndim != 4 or x.shape[1] != len(self.target):
            raise ValueError(
                f"ChannelTarget reads images [B, {len(self.target)}, H, W], one channel for each target: "
                f"got {list(x.shape)}"
            )
        return -(x.flatten(2).mean(2) - x.new_tensor(self.target)).square().sum(1)


class Smoothness(Reward):
    """Less the total variation: minus the mean absolute difference of neighbouring pixels, 0 for a flat image."""

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B] in [-4, 0]; raises ValueError for anything but images of at least 2 x 2."""
        if x.ndim != 4 or min(x.shape[2:]) < 2:
            raise ValueError(f"Smoothness reads images [B, C, H, W] of at least 2 x 2: got {list(x.shape)}")
        down, right = x.diff(dim=2), x.diff(dim=3)
        return -(down.abs().flatten(1).mean(1) + right.abs().flatten(1).mean(1))


class Compressibility(Reward):
    """Less the size of the image as a JPEG of quality 95, in kilobytes (arXiv 2305.13301). It has no gradient."""

    is_differentiable = False
    sign = -1

    @torch.no_grad()
    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B] float32; raises ValueError for anything but images of 1 or 3 channels."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"{type(self).__name__} reads images [B, 1 or 3, H, W]: got {list(x.shape)}")
        sizes = [_jpeg_bytes(pixels) for pixels in to_pixels(x.float().cpu())]
        return self.sign * torch.tensor(sizes, dtype=torch.float32, device=x.device) / 1000


class Incompressibility(Compressibility):
    """The size of the image as a JPEG of quality 95, in kilobytes (arXiv 2305.13301). It has no gradient."""

    sign = 1


class FunctionReward(Reward):
    """A function of yours, called with images [B, C, H, W] in [-1, 1] and their condition; it returns [B].

    It takes no gradient. Its module is imported before, on the command line by ``--import MODULE``.
    """

    is_differentiable = False

    def __init__(self, function: str) -> None:
        """Args:
        function: module and name, as "my_rewards.sharpness".

        Raises:
            ValueError: where no such module is imported, or it has no such function.
        """
        super().__init__()
        module, _, name = function.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        if not callable(found):
            raise ValueError(
                f"function is one of a module that is imported: got {function!r}; "
                f"import it before (--import {module or 'MODULE'})"
            )
        self._function: Callable[..., Any] = found

    @torch.no_grad()
    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """What the function returns."""
        return self._function(x, condition)


class RewardSum(Reward):
    """A weighted sum of rewards, each as a z-score over the samples that are compared: their units do not matter."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        """Args:
        rewards: at least one, each of another class.
        weights: of the z-scores, one each; negative ones turn a reward around. 1 each where not given.
        """
        super().__init__()
        weights = [1.0] * len(rewards) if weights is None else list(weights)
        if not rewards or len(weights) != len(rewards):
            raise ValueError(
                f"a sum has one weight for each reward: got {len(rewards)} rewards, {len(weights)} weights"
            )
        names = [type(reward).__name__ for reward in rewards]
        if len(set(names)) < len(names) or "RewardSum" in names:
            raise ValueError(f"a sum is of rewards of different classes, none a sum itself: got {', '.join(names)}")
        self.rewards, self.weights = nn.ModuleList(rewards), weights
        self.is_differentiable = all(reward.is_differentiable for reward in rewards)

    def parts(self) -> dict[str, Reward]:
        """The rewards, by the names of their classes."""
        return {type(reward).__name__: reward for reward in self.rewards}  # type: ignore[misc]

    def total(self, scores: Tensor) -> Tensor:
        """[N] of the rewards [N, parts], which are compared over all N."""
        std = scores.std(dim=0, correction=0).clamp_min(SMALLEST_STD)
        return ((scores - scores.mean(0)) / std) @ scores.new_tensor(self.weights)

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B], compared over the B samples."""
        return self.total(torch.stack([reward(x, condition) for reward in self.rewards], 1))

    def prepare(self, data: GenerativeDataModule) -> None:
        """Prepare each."""
        for reward in self.parts().values():
            reward.prepare(data)


def _jpeg_bytes(pixels: Any) -> int:
    """Size of uint8 [H, W, 1 or 3] as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=_QUALITY)
    return file.tell()
