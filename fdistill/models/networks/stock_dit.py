"""diffusers' class-conditional DiTTransformer2DModel (arXiv 2212.09748) as a raw network in two halves."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fdistill.core.build import build_stock
from fdistill.core.weight_files import brief
from fdistill.models.condition import LABELS, Condition
from fdistill.models.networks.base import Encoding, Network

_COUNTS = (
    *("sample_size", "patch_size", "num_layers", "num_embeds_ada_norm", "num_attention_heads", "attention_head_dim"),
    *("in_channels", "out_channels"),
)
_MOST_PATCHES = 256  # along a side; no weight depends on it, and each is a row of the table of positions


class StockDiT(Network):
    """DiTTransformer2DModel at the timestep noise_scale * noise; the encoder is the first half of its blocks.

    Its own label for "no class" is num_embeds_ada_norm, which is num_classes here. Labels are dropped by whoever trains
    it, never inside. Where it predicts a variance beside each channel, the variance is left out.
    """

    def __init__(self, config: dict[str, Any], noise_scale: float = 1.0) -> None:
        """Args:
        config: arguments of DiTTransformer2DModel.
        noise_scale: timestep for each unit of the noise input.

        Raises:
            ValueError: for a configuration that is not diffusers', or of other channels than it sees.
        """
        from diffusers import DiTTransformer2DModel  # seconds of imports, which our own networks do without

        super().__init__()
        _check(config)
        self.transformer = build_stock(DiTTransformer2DModel, config)
        known = self.transformer.config
        channels, made = known.in_channels, self.transformer.out_channels
        if made not in (channels, 2 * channels):
            raise ValueError(
                f"a denoiser makes the channels that it sees, or a variance beside each: expected {channels} or "
                f"{2 * channels} out_channels, got {made}"
            )
        if known.sample_size % known.patch_size or known.num_layers < 2:
            raise ValueError(
                "a DiT in halves has patches that fill the sample and at least two layers: got sample_size="
                f"{known.sample_size}, patch_size={known.patch_size}, num_layers={known.num_layers}"
            )
        for block in self.transformer.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0
        self.noise_scale = noise_scale
        self.sample_shape = (channels, known.sample_size, known.sample_size)
        self.num_classes = known.num_embeds_ada_norm
        self.feature_channels = (self.transformer.inner_dim,)

    def units(self) -> list[nn.Module]:
        return [self._blocks[0].norm1.emb, *super().units()]  # which the last layer asks too

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        timestep, labels = self.noise_scale * noise, condition[LABELS]
        hidden = self.transformer.pos_embed(x)
        for block in self._blocks[: len(self._blocks) // 2]:
            hidden = block(hidden, timestep=timestep, class_labels=labels)
        tap = hidden.transpose(1, 2).unflatten(2, (self._side, self._side))
        return Encoding((tap,), (hidden, timestep, labels))

    def decode(self, encoding: Encoding) -> Tensor:
        net = self.transformer
        hidden, timestep, labels = encoding.state
        for block in self._blocks[len(self._blocks) // 2 :]:
            hidden = block(hidden, timestep=timestep, class_labels=labels)
        condition = self._blocks[0].norm1.emb(timestep, labels, hidden_dtype=hidden.dtype)
        shift, scale = net.proj_out_1(silu(condition))[:, None].chunk(2, dim=-1)
        patches = net.proj_out_2(net.norm_out(hidden) * (1 + scale) + shift)
        patches = patches.unflatten(2, (net.patch_size, net.patch_size, -1)).unflatten(1, (self._side, self._side))
        image = torch.einsum("bhwpqc->bchpwq", patches).flatten(4, 5).flatten(2, 3)
        return image[:, : self.sample_shape[0]]  # the rest is a variance

    def from_stock_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A stock network's tensors as this network's state: named `transformer.*`."""
        return {f"transformer.{name}": value for name, value in weights.items()}

    @property
    def _blocks(self) -> Any:
        return self.transformer.transformer_blocks

    @property
    def _side(self) -> int:
        """Patches along each side."""
        return self.sample_shape[1] // self.transformer.patch_size


def _check(config: dict[str, Any]) -> None:
    for name in _COUNTS:
        value = config.get(name, 1)
        absent = value is None and name == "out_channels"  # as many as in_channels
        if not absent and not (type(value) is int and value > 0):
            raise ValueError(f"{name} of a DiT is an integer and positive: got {brief(value)}")
    if config.get("sample_size", 0) > _MOST_PATCHES * config.get("patch_size", 1):
        raise ValueError(
            f"a DiT has at most {_MOST_PATCHES} patches along a side: got sample_size={config['sample_size']}, "
            f"patch_size={config.get('patch_size')}"
        )
