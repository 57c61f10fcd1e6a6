"""A UNet2DModel that is described in a few words, and that stock diffusers loads as a student."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch

from fdistill.models.networks.small_unet import check_halving
from fdistill.models.networks.stock_unet import StockUNet

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_TIME_SCALE = (
    1000.0  # EDM's noise input ln(sigma)/4 times 1000 is the timestep 250 ln(sigma) of diffusers' consistency pipeline
)


class DiffusersUNet(StockUNet):
    """UNet2DModel with positional time embedding; the timestep it sees is 1000 times the noise input."""

    def __init__(
        self,
        resolution: int = 8,
        channels: int = 1,
        widths: Sequence[int] = (16, 32),
        num_classes: int = 0,
        blocks_per_level: int = 1,
        attention_levels: Sequence[int] = (),
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        """Args:
        resolution: side of the square images; halved len(widths) - 1 times.
        channels: image channels.
        widths: channels at each level, from the finest down; each a multiple of `groups`.
        num_classes: 0 for an unconditional network.
        blocks_per_level: residual blocks on the way down (one more on the way up).
        attention_levels: levels (0 is the finest) with self-attention; the middle has it if any level has.
        groups: of the group normalisation.
        dropout: probability in [0, 1).
        """
        check_halving(resolution, len(widths))
        if any(width % groups for width in widths):
            raise ValueError(f"each width is a multiple of groups={groups}: got {list(widths)}")
        attends = [level in attention_levels for level in range(len(widths))]
        config = {
            "sample_size": resolution,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": tuple(widths),
            "layers_per_block": blocks_per_level,
            "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "add_attention": any(attends),
            "norm_num_groups": groups,
            "dropout": dropout,
            "num_class_embeds": num_classes + 1 if num_classes else None,
        }
        super().__init__(config, _TIME_SCALE, last_class_is_none=num_classes > 0)

    def stock_unet(self) -> "UNet2DModel":
        """A copy for export, without the "no class" row, so that a random class of the stock pipeline is a real one."""
        if not self.num_classes:
            return _copy_unet(self.unet, None)
        return _copy_unet(self.unet, self.num_classes)

    @classmethod
    def from_stock(cls, unet: "UNet2DModel") -> Self:
        """The network around an exported UNet2DModel; its "no class" row is not trained and is NaN, so that use shows.

        Raises:
            ValueError: if the UNet has features this class does not describe.
        """
        config = unet.config
        if not isinstance(config.sample_size, int):
            raise ValueError(f"DiffusersUNet does not describe sample_size={config.sample_size}: expected one integer")
        network = cls(
            resolution=config.sample_size,
            channels=config.in_channels,
            widths=tuple(config.block_out_channels),
            num_classes=config.num_class_embeds or 0,
            blocks_per_level=config.layers_per_block,
            attention_levels=[i for i, kind in enumerate(config.down_block_types) if kind == "AttnDownBlock2D"],
            groups=config.norm_num_groups,
            dropout=config.dropout,
        )
        ours = network.unet.config  # equal weights would not do: torch skips those of an absent attention silently
        compared = [key for key in ours if key[0] != "_" and key != "num_class_embeds"]
        others = [f"{key}={config[key]}" for key in compared if _as_list(config[key]) != _as_list(ours[key])]
        if others:
            raise ValueError(f"DiffusersUNet does not describe a UNet2DModel with {', '.join(others)}")
        state = unet.state_dict()
        if network.num_classes:
            rows = state["class_embedding.weight"]
            state["class_embedding.weight"] = torch.cat([rows, rows.new_full((1, rows.shape[1]), float("nan"))])
        network.unet.load_state_dict(state)
        return network


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples


def _copy_unet(unet: "UNet2DModel", num_class_embeds: int | None) -> "UNet2DModel":
    copy = type(unet).from_config({**unet.config, "num_class_embeds": num_class_embeds})
    state = unet.state_dict()
    if num_class_embeds is not None:
        state["class_embedding.weight"] = state["class_embedding.weight"][:num_class_embeds]
    copy.load_state_dict(state)
    return copy.eval()
