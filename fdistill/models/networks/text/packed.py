"""FLUX.1, FLUX.2 and Qwen-Image, whose networks see latents as tokens of 2 x 2."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fdistill.models.condition import Condition, Takes
from fdistill.models.networks.text.family import MASK, POOLED, TEXT, Family, PromptOutputs, tokens, vector


class _Packed(Family):
    """Base of the networks that see 2 x 2 latents as one token: [B, h/2 * w/2, 4 C]."""

    time_scale = 1.0
    patch = 2

    @classmethod
    def latents(cls, config: Mapping[str, Any], vae_factor: int) -> tuple[int, int]:
        return config["in_channels"] // 4, vae_factor

    def check(self) -> None:
        made = self.config.get("out_channels") or self.config["in_channels"]
        if self.config["in_channels"] != 4 * self.channels or made * self.out_patch**2 != 4 * self.channels:
            raise ValueError(
                f"tokens of this {self.stock} hold 2 x 2 latents: expected {4 * self.channels} channels in and out, "
                f"got in_channels={self.config['in_channels']} and out_channels={made}"
            )
        self.check_patches(2)

    @property
    def out_patch(self) -> int:
        """Side of the patch of which the configuration counts out_channels."""
        return self.config["patch_size"]

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        return {"hidden_states": self.packed(x), "timestep": noise, "guidance": self.told_guidance(x)}

    def packed(self, x: Tensor) -> Tensor:
        """Latents as tokens."""
        squares = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B, C, h/2, 2, w/2, 2
        return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def prediction(self, output: Any) -> Tensor:
        squares = output.unflatten(2, (self.channels, 2, 2)).unflatten(1, (self.height // 2, self.width // 2))
        return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def feature_channels(self, block: int) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    def tap(self, output: Any, condition: Condition) -> Tensor:
        count = self.height * self.width // self.patch**2
        return self.laid_out(output[1] if isinstance(output, tuple) else output[:, -count:])  # after the text

    def places(self, x: Tensor, width: int) -> Tensor:
        """Row and column of every token in entries 1 and 2 of its identity, [S, width]."""
        rows, columns = self.height // self.patch, self.width // self.patch
        ids = torch.zeros(rows, columns, width, device=x.device, dtype=x.dtype)
        ids[..., 1] += torch.arange(rows, device=x.device)[:, None]
        ids[..., 2] += torch.arange(columns, device=x.device)
        return ids.flatten(0, 1)


class _TwoStreams(_Packed):
    """Base of FLUX.1 and FLUX.2: blocks of two streams, then of one. Features behind the last one of two."""

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        single: Any = net.single_transformer_blocks
        return [*super().blocks(net), *single]

    def middle(self, net: nn.Module) -> int:
        return len(super().blocks(net)) - 1


class Flux(_TwoStreams):
    """FLUX.1: dev, whose guidance is embedded, and schnell, which has none."""

    stock = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline",)
    encoded = PromptOutputs({TEXT: 0, POOLED: 1})
    guided = {"true_cfg_scale": 2.0, "negative_prompt": ""}
    has_null = False

    @property
    def takes(self) -> Takes:
        return {
            TEXT: tokens(self.config["joint_attention_dim"]),
            POOLED: vector(self.config["pooled_projection_dim"]),
        }

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        text = torch.zeros(condition[TEXT].shape[1], 3, device=x.device, dtype=x.dtype)
        return {**super().constants(x, noise, condition), "img_ids": self.places(x, 3), "txt_ids": text}


class Flux2(_TwoStreams):
    """FLUX.2: its latents are packed before they are normalised, so that a sample is [4 C, h/2, w/2] already."""

    stock = "Flux2Transformer2DModel"
    pipelines = ("Flux2KleinPipeline",)
    encoded = PromptOutputs({TEXT: 0})
    patch = 1

    @classmethod
    def latents(cls, config: Mapping[str, Any], vae_factor: int) -> tuple[int, int]:
        return config["in_channels"], 2 * vae_factor

    def check(self) -> None:
        Family.check(self)

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["joint_attention_dim"])}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        text = torch.zeros(condition[TEXT].shape[1], 4, device=x.device, dtype=x.dtype)
        text[:, 3] += torch.arange(len(text), device=x.device)
        return {**super().constants(x, noise, condition), "img_ids": self.places(x, 4), "txt_ids": text}

    def packed(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def prediction(self, output: Any) -> Tensor:
        return self.laid_out(output)


class QwenImage(_Packed):
    """Qwen-Image."""

    stock = "QwenImageTransformer2DModel"
    pipelines = ("QwenImagePipeline",)
    encoded = PromptOutputs.masked(f"{TEXT}_mask", with_null=False)
    norm = "token"
    guided = {"true_cfg_scale": 2.0, "negative_prompt": ""}

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["joint_attention_dim"]), f"{TEXT}_mask": MASK}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        shapes = [[(1, self.height // 2, self.width // 2)]] * len(x)
        return {**super().constants(x, noise, condition), "img_shapes": shapes}
