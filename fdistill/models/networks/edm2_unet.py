"""The magnitude-preserving UNet of EDM2 (Karras et al. 2024, arXiv 2312.02696, configuration G, figure 21).

Parameters have the names that published EDM2 weights give them, so that a state dict fits as it is.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdistill.models.condition import Condition
from fdistill.models.networks.attention import attend, heads_of
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.embeddings import at_least_single, class_vectors
from fdistill.models.networks.magnitude_preserving import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, unit_magnitude
from fdistill.models.networks.small_unet import check_halving

_RESIDUAL_BALANCE = 0.3
_CLIP = 256.0  # keeps half precision from overflowing


class EDM2UNet(Network):
    """Activations, weights and updates of fixed magnitude; the defaults are EDM2-S for latents of ImageNet-512.

    In training mode `encode` first normalises the weights (equation 66), so a learning rate means the same rotation of
    the weights at every step and must decay.
    """

    exact_in_training = True

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 4,
        num_classes: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        blocks_per_level: int = 3,
        attention_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        knows_no_class: bool = True,
    ) -> None:
        """Args:
        resolution: side of the square images; halved len(channel_mult) - 1 times.
        channels: image channels.
        num_classes: 0 for an unconditional network.
        model_channels: unit of all widths.
        channel_mult: width of each level in that unit, from the finest down.
        channel_mult_noise: width of the noise embedding in that unit; None for that of the finest level.
        channel_mult_emb: width of the condition in that unit; None for that of the widest level.
        blocks_per_level: residual blocks on the way down (one more on the way up).
        attention_resolutions: resolutions with self-attention; the middle always has it.
        channels_per_head: of the self-attention; each attending width is a multiple.
        dropout: probability in [0, 1).
        knows_no_class: False where its weights come from a training without "no class".
        """
        super().__init__()
        check_halving(resolution, len(channel_mult))
        self.sample_shape, self.num_classes = (channels, resolution, resolution), num_classes
        self.knows_no_class = knows_no_class
        widths = [model_channels * multiple for multiple in channel_mult]
        self.feature_channels, self.blocks_per_level = tuple(widths), blocks_per_level
        self.sides = [f"{resolution >> level}x{resolution >> level}" for level in range(len(widths))]
        attends = [resolution >> level in attention_resolutions for level in range(len(widths))]
        uneven = [
            width for width, at in zip(widths, [*attends[:-1], True], strict=True) if at and width % channels_per_head
        ]
        if uneven:
            raise ValueError(f"attending widths are multiples of channels_per_head={channels_per_head}: got {uneven}")
        noise = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        condition = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, condition)
        self.emb_label = MPConv(num_classes, condition) if num_classes else None
        block = _BlockMaker(condition, channels_per_head, dropout)
        self.enc, kept = self._build_encoder(widths, attends, block)
        self.dec = self._build_decoder(widths, attends, kept, block)
        self.out_conv = MPConv(widths[0], channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def _build_encoder(
        self, widths: list[int], attends: list[bool], block: "_BlockMaker"
    ) -> tuple[nn.ModuleDict, list[int]]:
        """The way down, and the width of each skip connection in the order in which they arise."""
        layers, width = nn.ModuleDict(), widths[0]
        layers[f"{self.sides[0]}_conv"] = MPConv(self.sample_shape[0] + 1, width, 3)
        kept = [width]
        for level, (side, goal) in enumerate(zip(self.sides, widths, strict=True)):
            if level:
                layers[f"{side}_down"] = block("enc", width, width, resample="down")
                kept.append(width)
            for index in range(self.blocks_per_level):
                layers[f"{side}_block{index}"] = block("enc", width, goal, attention=attends[level])
                width = goal
                kept.append(width)
        return layers, kept

    def _build_decoder(
        self, widths: list[int], attends: list[bool], kept: list[int], block: "_BlockMaker"
    ) -> nn.ModuleDict:
        bottom = len(widths) - 1
        layers, width = nn.ModuleDict(), widths[-1]
        for level in range(bottom, -1, -1):
            side, goal = self.sides[level], widths[level]
            if level == bottom:
                layers[f"{side}_in0"] = block("dec", width, width, attention=True)
                layers[f"{side}_in1"] = block("dec", width, width)
            else:
                layers[f"{side}_up"] = block("dec", width, width, resample="up")
            for index in range(self.blocks_per_level + 1):
                layers[f"{side}_block{index}"] = block("dec", width + kept.pop(), goal, attention=attends[level])
                width = goal
        return layers

    def normalise_weights(self) -> None:
        """Scale every weight vector to unit magnitude, in place, where weights changed since the last call (eq. 66)."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalise()

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        if self.training:
            self.normalise_weights()
        embedding = self._embedding(noise, condition).to(x.dtype)
        hidden = self.enc[f"{self.sides[0]}_conv"](F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0))  # ones stand for a bias
        skips, features = [hidden], []
        for level, side in enumerate(self.sides):
            if level:
                hidden = self.enc[f"{side}_down"](hidden, embedding)
                skips.append(hidden)
            for index in range(self.blocks_per_level):
                hidden = self.enc[f"{side}_block{index}"](hidden, embedding)
                skips.append(hidden)
            features.append(hidden)
        return Encoding(tuple(features), (tuple(skips), embedding))

    def decode(self, encoding: Encoding) -> Tensor:
        kept, embedding = encoding.state
        skips, hidden = list(kept), kept[-1]
        for side in reversed(self.sides):
            if f"{side}_up" in self.dec:
                hidden = self.dec[f"{side}_up"](hidden, embedding)
            else:
                hidden = self.dec[f"{side}_in1"](self.dec[f"{side}_in0"](hidden, embedding), embedding)
            for index in range(self.blocks_per_level + 1):
                hidden = self.dec[f"{side}_block{index}"](mp_cat(hidden, skips.pop()), embedding)
        return self.out_conv(hidden, self.out_gain)

    def _embedding(self, noise: Tensor, condition: Condition) -> Tensor:
        """[B, condition]; "no class" is the zero vector of classes."""
        embedding = self.emb_noise(self.emb_fourier(noise.to(at_least_single(self.emb_noise.weight.dtype))))
        if self.emb_label is not None:
            classes = class_vectors(condition, self.num_classes).to(embedding.dtype)
            embedding = mp_sum(embedding, self.emb_label(classes * math.sqrt(self.num_classes)))
        return mp_silu(embedding)


class _BlockMaker:
    """What all blocks of a network share."""

    def __init__(self, condition: int, channels_per_head: int, dropout: float) -> None:
        self.condition, self.channels_per_head, self.dropout = condition, channels_per_head, dropout

    def __call__(
        self,
        flavour: Literal["enc", "dec"],
        inward: int,
        outward: int,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> "_Block":
        heads = outward // self.channels_per_head if attention else 0
        return _Block(flavour, inward, outward, self.condition, heads, self.dropout, resample)


class _Block(nn.Module):
    """A residual branch whose second activation is scaled by the condition, and self-attention of cosines."""

    def __init__(
        self,
        flavour: Literal["enc", "dec"],
        inward: int,
        outward: int,
        condition: int,
        heads: int,
        dropout: float,
        resample: Literal["up", "down"] | None,
    ) -> None:
        super().__init__()
        self.encodes, self.heads, self.dropout, self.resample = flavour == "enc", heads, dropout, resample
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(outward if self.encodes else inward, outward, 3)
        self.emb_linear = MPConv(condition, outward)
        self.conv_res1 = MPConv(outward, outward, 3)
        self.conv_skip = MPConv(inward, outward, 1) if inward != outward else None
        self.attn_qkv = MPConv(outward, 3 * outward, 1) if heads else None
        self.attn_proj = MPConv(outward, outward, 1) if heads else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self._resampled(x)
        if self.encodes:
            x = unit_magnitude(self._skipped(x), dim=1)
        hidden = self.conv_res0(mp_silu(x))
        scale = 1 + self.emb_linear(condition, self.emb_gain)[:, :, None, None]
        hidden = F.dropout(mp_silu(hidden * scale), self.dropout, self.training)
        straight = x if self.encodes else self._skipped(x)
        x = mp_sum(straight, self.conv_res1(hidden), _RESIDUAL_BALANCE)
        if self.attn_qkv is not None and self.attn_proj is not None:
            parts = heads_of(self.attn_qkv(x), self.heads)
            attended = attend(*(unit_magnitude(part, dim=2) for part in parts))
            x = mp_sum(x, self.attn_proj(attended.reshape(x.shape)), _RESIDUAL_BALANCE)
        return x.clamp(-_CLIP, _CLIP)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x if self.resample is None else F.interpolate(x, scale_factor=2.0, mode="nearest")

    def _skipped(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)
