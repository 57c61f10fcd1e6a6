"""ADM as EDM trains it on ImageNet-64 (Dhariwal and Nichol 2021, arXiv 2105.05233) is a UNet2DModel of diffusers.

Same function, other names: EDM counts a resampling block to the level it enters, diffusers to the level it leaves.
"""

from typing import Any

import torch
from torch import Tensor

from fdistill.core.weight_files import shown

_CHANNELS_PER_HEAD, _GROUPS = 64, 32
_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {"norm2": "group_norm", "proj": "to_out.0"}
_TOP = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}


def adm_config(
    resolution: int,
    channels: int,
    num_classes: int,
    model_channels: int,
    channel_mult: list[int],
    channel_mult_emb: int,
    blocks_per_level: int,
    attention_resolutions: list[int],
    dropout: float,
    knows_no_class: bool,
) -> dict[str, Any]:
    """Arguments of UNet2DModel; the arguments are those of SongUNet.

    Raises:
        ValueError: where the network has group or head sizes that UNet2DModel has no argument for.
    """
    widths = [model_channels * multiple for multiple in channel_mult]
    attends = [resolution >> level in attention_resolutions for level in range(len(widths))]
    if min(widths) < 4 * _GROUPS or any(width % _CHANNELS_PER_HEAD for width in widths):
        raise ValueError(f"an ADM network of diffusers has widths of at least 128, multiples of 64: got {widths}")
    if channel_mult_emb != 4 or channel_mult[0] != 1:
        raise ValueError(
            "an ADM network of diffusers has a condition four times as wide as its first level, whose multiple is 1: "
            f"got {channel_mult_emb} and {channel_mult[0]}"
        )
    return {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if at else "ResnetDownsampleBlock2D" for at in attends],
        "up_block_types": ["AttnUpBlock2D" if at else "ResnetUpsampleBlock2D" for at in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": blocks_per_level,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "dropout": dropout,
        "attention_head_dim": _CHANNELS_PER_HEAD,
        "norm_num_groups": _GROUPS,
        "attn_norm_num_groups": _GROUPS,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": num_classes + int(knows_no_class) if num_classes else None,
    }


def adm_weights(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The state of a `StockUNet` from the weights of EDM's DhariwalUNet.

    The class table gets a last row for "no class", which ADM feeds as the zero vector of classes.

    Args:
        weights: as the pickle has them.
        config: of `adm_config`.

    Raises:
        ValueError: for a tensor that has no place in ADM.
    """
    levels, resolution = len(config["block_out_channels"]), config["sample_size"]
    level_of = {f"{resolution >> level}x{resolution >> level}": level for level in range(levels)}
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "map_label":
            rows = value.t()
            found = {"class_embedding.weight": torch.cat([rows, rows.new_zeros(1, rows.shape[1])])}
        elif parts[0] in _TOP:
            found = {f"{_TOP[parts[0]]}.{parts[1]}": value}
        elif len(parts) == 3 and parts[1].endswith("_conv"):
            found = {f"conv_in.{parts[2]}": value}
        elif len(parts) == 4:
            side, role = parts[1].split("_", 1)
            place, index = _place(parts[0], level_of[side], role, levels)
            found = _block_tensor(place, index, parts[2], parts[3], value)
        else:
            raise ValueError(f"ADM has no tensor {shown(name)}")
        if found.keys() & state.keys():
            raise ValueError(f"ADM has no second tensor for the place of {shown(name)}")
        state |= found
    return {f"unet.{name}": value for name, value in state.items()}


def _place(half: str, level: int, role: str, levels: int) -> tuple[str, str]:
    """The block of diffusers that holds a block of EDM, and its name in there."""
    if role in ("in0", "in1"):
        return "mid_block", f"resnets.{role[2:]}"
    if role == "down":
        return f"down_blocks.{level - 1}", "downsamplers.0"
    if role == "up":
        return f"up_blocks.{levels - 2 - level}", "upsamplers.0"
    place = f"down_blocks.{level}" if half == "enc" else f"up_blocks.{levels - 1 - level}"
    return place, f"resnets.{role.removeprefix('block')}"


def _block_tensor(place: str, index: str, layer: str, kind: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of a block; query, key and value lie side by side for each channel of a head in EDM."""
    attention = f"{place}.{index.replace('resnets', 'attentions')}"
    if layer in _BLOCK:
        return {f"{place}.{index}.{_BLOCK[layer]}.{kind}": value}
    if layer == "qkv":
        heads = value.reshape(-1, _CHANNELS_PER_HEAD, 3, *value.shape[1:2])
        return {
            f"{attention}.to_{letter}.{kind}": heads[:, :, which].flatten(0, 1) for which, letter in enumerate("qkv")
        }
    if layer in _ATTENTION:
        return {f"{attention}.{_ATTENTION[layer]}.{kind}": value.flatten(1) if value.ndim == 4 else value}
    raise ValueError(f"ADM has no layer {shown(layer)}")
