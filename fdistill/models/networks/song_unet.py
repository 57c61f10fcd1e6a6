"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) in the form that EDM trains (Karras et al. 2022, 2206.00364).

Parameters have the names that published EDM weights give them, so that a state dict fits as it is.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdistill.models.condition import Condition
from fdistill.models.networks.attention import attend, heads_of
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.embeddings import at_least_single, class_vectors
from fdistill.models.networks.resampling import Downsample, Upsample
from fdistill.models.networks.small_unet import check_halving
from fdistill.models.quantised import weight_dtype

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)
_HALF = math.sqrt(0.5)  # a sum of two branches of equal variance keeps it


class SongUNet(Network):
    """Residual blocks with attention at chosen resolutions; the defaults are EDM's DDPM++ for CIFAR-10.

    NCSN++ is embedding="fourier", encoder="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1].
    """

    def __init__(
        self,
        resolution: int = 32,
        channels: int = 3,
        num_classes: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_noise: int = 1,
        channel_mult_emb: int = 4,
        blocks_per_level: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
        knows_no_class: bool = True,
    ) -> None:
        """Args:
        resolution: side of the square images; halved len(channel_mult) - 1 times.
        channels: image channels.
        num_classes: 0 for an unconditional network.
        model_channels: unit of all widths, a multiple of 4.
        channel_mult: width of each level in that unit, from the finest down.
        channel_mult_noise: width of the noise embedding in that unit.
        channel_mult_emb: width of the condition in that unit.
        blocks_per_level: residual blocks on the way down (one more on the way up).
        attention_resolutions: resolutions with self-attention; the middle always has it.
        dropout: probability in [0, 1).
        embedding: of the noise input, "positional" (sines at fixed frequencies) or "fourier" (at random ones).
        encoder: "residual" adds the downsampled image to every level.
        decoder: "skip" sums an image of every level into the output.
        resample_filter: [1, 1], or [1, 3, 3, 1] against aliasing.
        knows_no_class: False where its weights come from a training without "no class".
        """
        super().__init__()
        check_halving(resolution, len(channel_mult))
        _check_choice("embedding", embedding, ("positional", "fourier"))
        _check_choice("encoder", encoder, ("standard", "residual"))
        _check_choice("decoder", decoder, ("standard", "skip"))
        self.sample_shape, self.num_classes = (channels, resolution, resolution), num_classes
        self.knows_no_class = knows_no_class
        widths = [model_channels * multiple for multiple in channel_mult]
        self.feature_channels = tuple(widths)
        self.blocks_per_level, self.residual, self.skip = blocks_per_level, encoder == "residual", decoder == "skip"
        self.sides = [f"{resolution >> level}x{resolution >> level}" for level in range(len(widths))]
        noise, condition = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(noise) if embedding == "positional" else RandomFourier(noise)
        self.map_label = _initialised(nn.Linear(num_classes, noise)) if num_classes else None
        self.map_layer0 = _initialised(nn.Linear(noise, condition))
        self.map_layer1 = _initialised(nn.Linear(condition, condition))
        attends = [resolution >> level in attention_resolutions for level in range(len(widths))]
        block = _BlockMaker(condition, dropout, resample_filter)
        self.enc, kept = self._build_encoder(model_channels, widths, attends, block)
        self.dec = self._build_decoder(widths, attends, kept, block)

    def _build_encoder(
        self, first: int, widths: list[int], attends: list[bool], block: "_BlockMaker"
    ) -> tuple[nn.ModuleDict, list[int]]:
        """The way down, and the width of each skip connection in the order in which they arise."""
        channels = self.sample_shape[0]
        layers, kept, width = nn.ModuleDict(), [first], first
        layers[f"{self.sides[0]}_conv"] = _initialised(nn.Conv2d(channels, first, 3, padding=1))
        image = channels
        for level, (side, goal) in enumerate(zip(self.sides, widths, strict=True)):
            if level:
                layers[f"{side}_down"] = block(width, width, resample="down")
                kept.append(width)
            if level and self.residual:
                layers[f"{side}_aux_residual"] = _DownConv(image, width, block.taps)
                image = width
            for index in range(self.blocks_per_level):
                layers[f"{side}_block{index}"] = block(width, goal, attention=attends[level])
                width = goal
                kept.append(width)
        return layers, kept

    def _build_decoder(
        self, widths: list[int], attends: list[bool], kept: list[int], block: "_BlockMaker"
    ) -> nn.ModuleDict:
        channels, bottom = self.sample_shape[0], len(widths) - 1
        layers, width = nn.ModuleDict(), widths[-1]
        for level in range(bottom, -1, -1):
            side, goal = self.sides[level], widths[level]
            if level == bottom:
                layers[f"{side}_in0"] = block(width, width, attention=True)
                layers[f"{side}_in1"] = block(width, width)
            else:
                layers[f"{side}_up"] = block(width, width, resample="up")
            for index in range(self.blocks_per_level + 1):
                last = index == self.blocks_per_level
                layers[f"{side}_block{index}"] = block(width + kept.pop(), goal, attention=last and attends[level])
                width = goal
            if self.skip and level < bottom:
                layers[f"{side}_aux_up"] = Upsample(block.taps)
            if self.skip or level == 0:
                layers[f"{side}_aux_norm"] = _group_norm(width)
                layers[f"{side}_aux_conv"] = _initialised(nn.Conv2d(width, channels, 3, padding=1), 1e-5)
        return layers

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        embedding = self._embedding(noise, condition).to(x.dtype)
        hidden, image = self.enc[f"{self.sides[0]}_conv"](x), x
        skips, features = [hidden], []
        for level, side in enumerate(self.sides):
            if level:
                hidden = self.enc[f"{side}_down"](hidden, embedding)
                if self.residual:
                    hidden = image = (hidden + self.enc[f"{side}_aux_residual"](image)) * _HALF
                skips.append(hidden)
            for index in range(self.blocks_per_level):
                hidden = self.enc[f"{side}_block{index}"](hidden, embedding)
                skips.append(hidden)
            features.append(hidden)
        return Encoding(tuple(features), (tuple(skips), embedding))

    def decode(self, encoding: Encoding) -> Tensor:
        kept, embedding = encoding.state
        skips, hidden = list(kept), kept[-1]
        image: Any = None  # until the first side that draws
        for side in reversed(self.sides):
            if f"{side}_up" in self.dec:
                hidden = self.dec[f"{side}_up"](hidden, embedding)
            else:
                hidden = self.dec[f"{side}_in1"](self.dec[f"{side}_in0"](hidden, embedding), embedding)
            for index in range(self.blocks_per_level + 1):
                hidden = self.dec[f"{side}_block{index}"](torch.cat([hidden, skips.pop()], dim=1), embedding)
            if f"{side}_aux_conv" in self.dec:
                drawn = self.dec[f"{side}_aux_conv"](F.silu(self.dec[f"{side}_aux_norm"](hidden)))
                image = drawn if image is None else drawn + self.dec[f"{side}_aux_up"](image)
        return image

    def _embedding(self, noise: Tensor, condition: Condition) -> Tensor:
        """[B, channel_mult_emb model_channels]; "no class" is the zero vector of classes."""
        embedding = self.map_noise(noise.to(at_least_single(weight_dtype(self.map_layer0))))
        if self.map_label is not None:
            classes = class_vectors(condition, self.num_classes).to(embedding.dtype)
            scaled = classes * math.sqrt(self.num_classes)
            embedding = embedding + self.map_label(scaled.to(weight_dtype(self.map_label)))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding.to(weight_dtype(self.map_layer0))))))


class PositionalEmbedding(nn.Module):
    """Sine and cosine of a number at frequencies that fall from 1 to 1/10000."""

    def __init__(self, channels: int) -> None:
        """Args:
        channels: even width of the embedding, at least 4.
        """
        super().__init__()
        exponents = torch.linspace(0, 1, channels // 2, dtype=torch.float64)
        self.freqs: Tensor
        self.register_buffer("freqs", (10_000.0**-exponents).float(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """[B] to [B, channels]."""
        angles = value[:, None] * self.freqs.to(value.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class RandomFourier(nn.Module):
    """Sine and cosine of a number at normal random frequencies of deviation 16, which are part of the weights."""

    def __init__(self, channels: int) -> None:
        """Args:
        channels: even width of the embedding.
        """
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, value: Tensor) -> Tensor:
        """[B] to [B, channels]."""
        angles = value[:, None] * (2 * math.pi * self.freqs).to(value.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _BlockMaker:
    """What all residual blocks of a network share."""

    def __init__(self, condition: int, dropout: float, taps: Sequence[float]) -> None:
        self.condition, self.dropout, self.taps = condition, dropout, taps

    def __call__(
        self, inward: int, outward: int, attention: bool = False, resample: Literal["up", "down"] | None = None
    ) -> "_ResidualBlock":
        sampler = {"up": Upsample, "down": Downsample}[resample](self.taps) if resample else None
        return _ResidualBlock(inward, outward, self.condition, self.dropout, attention, sampler)


class _ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the condition is added in between; then one head of self-attention."""

    def __init__(
        self, inward: int, outward: int, condition: int, dropout: float, attention: bool, sampler: nn.Module | None
    ) -> None:
        super().__init__()
        self.dropout, self.sampler = dropout, sampler
        self.norm0 = _group_norm(inward)
        self.conv0 = _initialised(nn.Conv2d(inward, outward, 3, padding=1))
        self.affine = _initialised(nn.Linear(condition, outward))
        self.norm1 = _group_norm(outward)
        self.conv1 = _initialised(nn.Conv2d(outward, outward, 3, padding=1), 1e-5)
        projected = sampler is not None or inward != outward
        self.skip = _initialised(nn.Conv2d(inward, outward, 1)) if projected else None
        if attention:
            self.norm2 = _group_norm(outward)
            self.qkv: nn.Conv2d | None = _initialised(nn.Conv2d(outward, 3 * outward, 1), math.sqrt(0.2))
            self.proj = _initialised(nn.Conv2d(outward, outward, 1), 1e-5)
        else:
            self.qkv = None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.conv0(self._resampled(F.silu(self.norm0(x))))
        hidden = F.silu(self.norm1(hidden + self.affine(condition)[:, :, None, None]))
        hidden = self.conv1(F.dropout(hidden, self.dropout, self.training))
        straight = x if self.skip is None else self.skip(self._resampled(x))
        hidden = (straight + hidden) * _HALF
        if self.qkv is not None:
            attended = attend(*heads_of(self.qkv(self.norm2(hidden)), 1)).reshape(hidden.shape)
            hidden = (hidden + self.proj(attended)) * _HALF
        return hidden

    def _resampled(self, x: Tensor) -> Tensor:
        return x if self.sampler is None else self.sampler(x)


class _DownConv(nn.Conv2d):
    """A 3x3 convolution whose padding serves the downsampling filter after it as well."""

    def __init__(self, inward: int, outward: int, taps: Sequence[float]) -> None:
        sampler = Downsample(taps, padded=False)
        super().__init__(inward, outward, 3, padding=1 + sampler.margin)
        self.sampler = sampler
        _initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.sampler(super().forward(x))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(min(32, channels // 4), 1), channels, eps=1e-6)


def _initialised(layer: _Layer, gain: float = 1.0) -> _Layer:
    """Uniform of Glorot and Bengio times a gain, and no bias; a tiny gain makes a residual branch begin as nothing."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} of a SongUNet is one of {', '.join(choices)}: got {value!r}")
