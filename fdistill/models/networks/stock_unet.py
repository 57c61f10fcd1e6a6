"""Any UNet2DModel of diffusers, rebuilt from its plain configuration, as a raw network in two halves."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fdistill.core.build import build_stock
from fdistill.core.weight_files import brief, shown
from fdistill.models.condition import LABELS, Condition
from fdistill.models.networks.base import Encoding, Network

_LARGEST_SIDE = 4096  # of a sample; no weight depends on it


class StockUNet(Network):
    """UNet2DModel at the timestep noise_scale * noise; of its outputs only as many channels as the sample has.

    A stock class-conditional network knows its classes alone: there is one more row here for "no class", which is NaN
    until it is trained or loaded, so that its use shows. With last_class_is_none the stock network has that row itself.
    """

    CLASSES = "unet.class_embedding.weight"  # the table of their rows

    def __init__(self, config: dict[str, Any], noise_scale: float = 1.0, last_class_is_none: bool = False) -> None:
        """Args:
        config: arguments of UNet2DModel; sample_size is one integer or two, up to 4096.
        noise_scale: timestep for each unit of the noise input.
        last_class_is_none: the last of num_class_embeds rows means "no class".

        Raises:
            ValueError: for a configuration that is not diffusers', or has no continuous timestep or plain classes.
        """
        from diffusers import UNet2DModel  # seconds of imports, which our own networks do without

        super().__init__()
        rows = config.get("num_class_embeds") or 0
        _check(config, rows, last_class_is_none)
        size = config["sample_size"]
        added = int(rows > 0 and not last_class_is_none)
        self.unet = build_stock(UNet2DModel, {**config, "num_class_embeds": rows + added or None})
        if added:
            with torch.no_grad():
                self.unet.class_embedding.weight[-1].fill_(math.nan)
        channels, made = self.unet.config.in_channels, self.unet.config.out_channels
        if made not in (channels, 2 * channels):
            raise ValueError(
                f"a denoiser makes the channels that it sees, or a variance beside each: expected {channels} or "
                f"{2 * channels} out_channels, got {made}"
            )
        self.noise_scale, self._rows_added = noise_scale, added
        self.knows_no_class = not added
        self.sample_shape = (channels, *((size, size) if isinstance(size, int) else size))
        self.num_classes = rows - 1 + added if rows else 0
        self.feature_channels = tuple(self.unet.config.block_out_channels)

    def units(self) -> list[nn.Module]:
        middle = [] if self.unet.mid_block is None else [self.unet.mid_block]
        return [*super().units(), *middle]

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        unet, timestep = self.unet, self.noise_scale * noise
        embedding = unet.time_embedding(unet.time_proj(timestep).to(x.dtype))
        if self.num_classes:
            embedding = embedding + unet.class_embedding(condition[LABELS]).to(x.dtype)
        if unet.config.center_input_sample:
            x = 2 * x - 1
        hidden, image = unet.conv_in(x), x  # `image` goes beside the hidden states where blocks have a skip_conv
        skips, features = (hidden,), []
        for block in unet.down_blocks:
            if hasattr(block, "skip_conv"):
                hidden, outputs, image = block(hidden_states=hidden, temb=embedding, skip_sample=image)
            else:
                hidden, outputs = block(hidden_states=hidden, temb=embedding)
            skips += outputs
            features.append(outputs[len(block.resnets) - 1])
        return Encoding(tuple(features), (hidden, skips, embedding, timestep))

    def decode(self, encoding: Encoding) -> Tensor:
        unet, image = self.unet, None
        hidden, skips, embedding, timestep = encoding.state
        if unet.mid_block is not None:
            hidden = unet.mid_block(hidden, embedding)
        for block in unet.up_blocks:
            used = len(block.resnets)
            if hasattr(block, "skip_conv"):
                hidden, image = block(hidden, skips[-used:], embedding, image)
            else:
                hidden = block(hidden, skips[-used:], embedding)
            skips = skips[:-used]
        output = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        if image is not None:
            output = output + image
        if unet.config.time_embedding_type == "fourier":
            output = output / timestep.reshape(-1, 1, 1, 1)
        return output[:, : self.sample_shape[0]]  # the rest is a variance

    def from_stock_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A stock network's tensors as this network's state: named `unet.*`, with the row of "no class" added."""
        state = {f"unet.{name}": value for name, value in weights.items()}
        if self._rows_added and self.CLASSES in state:
            rows = state[self.CLASSES]
            state[self.CLASSES] = torch.cat([rows, rows.new_full((1, rows.shape[1]), math.nan)])
        return state


def _check(config: dict[str, Any], rows: int, last_class_is_none: bool) -> None:
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in sides):
        raise ValueError(
            f"a UNet2DModel of samples of one shape: expected sample_size, positive and up to {_LARGEST_SIDE:,}, "
            f"one integer or two, got {brief(size)}"
        )
    widths = config.get("block_out_channels") or [1]
    channels = [config.get("in_channels", 1), config.get("out_channels", 1)]
    if not isinstance(widths, list | tuple) or not all(type(n) is int and n > 0 for n in (*widths, *channels)):
        raise ValueError(
            "in_channels, out_channels and block_out_channels are integers and positive: got "
            f"{brief(channels)} and {brief(widths)}"
        )
    if type(rows) is not int or rows < 0:
        raise ValueError(f"num_class_embeds counts the rows of a table: got {brief(rows)}")
    if config.get("time_embedding_type") == "learned":
        raise ValueError("a learned time embedding knows whole timesteps only: expected positional or fourier")
    if config.get("class_embed_type") is not None:
        raise ValueError(
            f"classes are rows of a table (num_class_embeds): got class_embed_type={shown(config['class_embed_type'])}"
        )
    if last_class_is_none and rows < 2:
        raise ValueError(f"last_class_is_none needs a class beside it: expected num_class_embeds >= 2, got {rows}")
