"""The families of text-to-image networks that are known here, by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fdistill.models.condition import Condition, Takes
from fdistill.models.networks.text.family import MASK, POOLED, TEXT, Family, PromptOutputs, tokens, vector
from fdistill.models.networks.text.packed import Flux, Flux2, QwenImage

_POOLED_XL, _MASK = "added_cond_kwargs.text_embeds", "encoder_attention_mask"


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x, of any prediction."""

    stock, part = "UNet2DConditionModel", "unet"
    pipelines = ("StableDiffusionPipeline",)
    encoded = PromptOutputs({TEXT: 0}, {TEXT: 1})
    hands_on_generator = True
    embedding: str | None = None
    """The addition_embed_type of its configuration."""

    def check(self) -> None:
        super().check()
        asked = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
        more = {name: self.config[name] for name in asked if self.config.get(name) is not None}
        if self.config.get("addition_embed_type") != self.embedding:
            more["addition_embed_type"] = self.config.get("addition_embed_type")
        if more:
            raise ValueError(f"this UNet2DConditionModel takes more than the prompts of its family: got {more}")
        self.check_patches(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["cross_attention_dim"])}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        return {"sample": x, "timestep": noise}

    def feature_channels(self, block: int) -> int:
        widths = self.config["block_out_channels"]
        return [*widths, widths[-1], *reversed(widths)][block]

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """Those on the way down, the middle one, those on the way up."""
        unet: Any = net
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]

    def tap(self, output: Any, condition: Condition) -> Tensor:
        return output[0] if isinstance(output, tuple) else output  # before those for the way up


class StableDiffusionXL(StableDiffusion):
    """SDXL: the pooled prompt too, and sizes, which are those of the image, uncropped."""

    pipelines = ("StableDiffusionXLPipeline",)
    encoded = PromptOutputs({TEXT: 0, _POOLED_XL: 2}, {TEXT: 1, _POOLED_XL: 3})
    embedding = "text_time"

    @property
    def takes(self) -> Takes:
        sizes = 6 * self.config["addition_time_embed_dim"]
        pooled = vector(self.config["projection_class_embeddings_input_dim"] - sizes)
        return {**super().takes, _POOLED_XL: pooled}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        size = [self.height * self.vae_factor, self.width * self.vae_factor]
        sizes = x.new_tensor([*size, 0, 0, *size]).expand(len(x), 6)
        return {**super().constants(x, noise, condition), "added_cond_kwargs.time_ids": sizes}


class PixArt(Family):
    """PixArt-Sigma, and PixArt-alpha, which is also told resolution and aspect ratio."""

    stock = "PixArtTransformer2DModel"
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    encoded = PromptOutputs.masked(_MASK)
    hands_on_generator = True

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["caption_channels"]), _MASK: MASK}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        resolution = ratio = None
        if self.config["use_additional_conditions"]:
            size = x.new_tensor([self.height * self.vae_factor, self.width * self.vae_factor])
            resolution, ratio = size.expand(len(x), 2), (size[:1] / size[1:]).expand(len(x), 1)
        micro = {"added_cond_kwargs.resolution": resolution, "added_cond_kwargs.aspect_ratio": ratio}
        return {**super().constants(x, noise, condition), **micro}

    def feature_channels(self, block: int) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]


class Sana(Family):
    """Sana, along a flow."""

    stock = "SanaTransformer2DModel"
    pipelines = ("SanaPipeline",)
    encoded = PromptOutputs.masked(_MASK)
    hands_on_generator = True

    @property
    def time_scale(self) -> float:  # type: ignore[override]  # of the configuration
        return 1000.0 * self.config["timestep_scale"]

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["caption_channels"]), _MASK: MASK}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        guidance = self.told_guidance(x)
        if guidance is not None:
            guidance = guidance * self.config["guidance_embeds_scale"]
        return {**super().constants(x, noise, condition), "guidance": guidance}

    def feature_channels(self, block: int) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]


class SanaSprint(Sana):
    """Sana-Sprint: on its quarter circle, but scaled so that it is the straight path and the velocity along it.

    At time s of the path its input is x_s and D = x_s - s F, which the pipeline's rescaling of both comes to.
    """

    pipelines = ("SanaSprintPipeline",)
    encoded = PromptOutputs.masked(_MASK, with_null=False)
    time_scale = 1.0
    guided = None
    has_null = False


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5."""

    stock = "SD3Transformer2DModel"
    pipelines = ("StableDiffusion3Pipeline",)
    encoded = PromptOutputs({TEXT: 0, POOLED: 2}, {TEXT: 1, POOLED: 3})
    time_scale = 1000.0

    @property
    def takes(self) -> Takes:
        return {
            TEXT: tokens(self.config["joint_attention_dim"]),
            POOLED: vector(self.config["pooled_projection_dim"]),
        }

    def feature_channels(self, block: int) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    def tap(self, output: Any, condition: Condition) -> Tensor:
        return self.laid_out(output[1])  # after the text


class Lumina2(Family):
    """Lumina Image 2.0: its time runs from noise to data, and its velocity with it."""

    stock = "Lumina2Transformer2DModel"
    pipelines = ("Lumina2Pipeline",)
    encoded = PromptOutputs.masked(_MASK)
    time_scale = 1.0
    norm = "row"

    @property
    def takes(self) -> Takes:
        return {TEXT: tokens(self.config["cap_feat_dim"]), _MASK: MASK}

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        return super().constants(x, 1 - noise, condition)

    def prediction(self, output: Any) -> Tensor:
        return -output

    def feature_channels(self, block: int) -> int:
        return self.config["hidden_size"]

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        layers: Any = net.layers
        return list(layers)

    def tap(self, output: Any, condition: Condition) -> Tensor:
        count = self.height * self.width // self.patch**2
        starts = condition[_MASK].sum(1, keepdim=True)  # after the text
        index = (starts + torch.arange(count, device=starts.device))[:, :, None].expand(-1, -1, output.shape[2])
        return self.laid_out(output.gather(1, index))


class ZImage(Family):
    """Z-Image: takes lists, one tensor for each sample; its time and velocity run from noise to data."""

    stock = "ZImageTransformer2DModel"
    pipelines = ("ZImagePipeline",)
    encoded = PromptOutputs({"cap_feats": 0}, {"cap_feats": 1}, "cap_mask")
    time_scale = 1.0
    null_first = False
    rescaling = ("cfg_normalization", "cap")
    patch = 2

    @property
    def takes(self) -> Takes:
        return {"cap_feats": tokens(self.config["cap_feat_dim"]), "cap_mask": MASK}

    def __call__(self, net: nn.Module, x: Tensor, noise: Tensor, condition: Condition) -> Tensor:
        text, mask = self.given(x, condition).values()
        captions = [each[kept.bool()] for each, kept in zip(text, mask, strict=True)]
        output = net(list(x[:, :, None].unbind()), 1 - noise, captions, return_dict=False)[0]
        return -torch.stack(output)[:, :, 0]

    def from_call(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        captions = arguments["cap_feats"]
        masks = [torch.ones(len(each), dtype=torch.int64) for each in captions]
        return {"cap_feats": pad_sequence(captions, True), "cap_mask": pad_sequence(masks, True)}

    def feature_channels(self, block: int) -> int:
        return self.config["dim"]

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        layers: Any = net.layers
        return list(layers)

    def tap(self, output: Any, condition: Condition) -> Tensor:
        return self.laid_out(output[:, : self.height * self.width // 4])  # before their padding and the text


FAMILIES: dict[str, type[Family]] = {
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "pixart": PixArt,
    "sana": Sana,
    "sana-sprint": SanaSprint,
    "sd3": StableDiffusion3,
    "flux": Flux,
    "flux2": Flux2,
    "qwen-image": QwenImage,
    "lumina2": Lumina2,
    "z-image": ZImage,
}
"""Every family by the name that descriptions of a network have."""


def family_of(pipeline: Any) -> str | None:
    """The name of the family whose networks a pipeline of this class has; None where none is known."""
    return next((name for name, family in FAMILIES.items() if pipeline in family.pipelines), None)
