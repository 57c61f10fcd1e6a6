"""A small UNet2DConditionModel that learns together with the CLIP text model whose embeddings it attends to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fdistill.models.condition import Condition, Entry, Takes
from fdistill.models.networks.base import Encoding, Network
from fdistill.models.networks.small_unet import check_halving
from fdistill.models.networks.text.family import TEXT
from fdistill.models.networks.text.network import TextToImageNetwork
from fdistill.models.networks.text.words import small_text_model, token_ids, word_tokenizer

IDS = "input_ids"
"""Name of the tokens of a text, int64 [B, length]."""


class WordUNet(Network):
    """What a Stable Diffusion pipeline holds, in small and for a closed set of words: text model and UNet, both learn.

    Its condition is the tokens of a text; "no condition" is those of the empty text. The UNet attends to the text at
    all levels but the finest, and in the middle. ``fdistill export`` writes it as a stock pipeline.
    """

    num_classes = 0

    def __init__(
        self,
        words: Sequence[str],
        length: int,
        resolution: int = 8,
        channels: int = 3,
        widths: Sequence[int] = (32, 64),
        text_width: int = 64,
        text_layers: int = 2,
        heads: int = 4,
        groups: int = 8,
    ) -> None:
        """Args:
        words: of which all texts consist.
        length: tokens of a text, two more than the words of the longest.
        resolution: side of the square images; halved len(widths) - 1 times.
        channels: of the images.
        widths: channels at each level, from the finest down; each a multiple of `groups`.
        text_width: channels of the text model, a multiple of `heads`.
        text_layers: of the text model.
        heads: of its attention.
        groups: of the group normalisation.

        Raises:
            ValueError: without transformers, for no words, or sizes that do not fit each other.
        """
        super().__init__()
        if not words or any(width % groups for width in widths) or text_width % heads:
            raise ValueError(
                f"texts have words, widths are multiples of groups, and text_width is one of heads: got {len(words)} "
                f"words, {list(widths)} of {groups}, {text_width} of {heads}"
            )
        check_halving(resolution, len(widths))
        levels = len(widths) - 1
        config = {
            "sample_size": resolution,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": tuple(widths),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
            "up_block_types": (*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
            "cross_attention_dim": text_width,
            "attention_head_dim": 4,
            "norm_num_groups": groups,
        }
        try:
            self.tokenizer = word_tokenizer(words, length)
            self.text = small_text_model(self.tokenizer, text_width, text_layers, heads)
        except ImportError as error:
            raise ValueError(f"a text model needs transformers: pip install 'fdistill[text]' ({error})") from error
        self.unet = TextToImageNetwork("sd", config, (channels, resolution, resolution), vae_factor=1)
        self.sample_shape, self.feature_channels = self.unet.sample_shape, self.unet.feature_channels
        self.length = length

    @property
    def takes(self) -> Takes:
        return {IDS: Entry((self.length,))}

    def null(self, n: int, device: torch.device | str = "cpu") -> Condition:
        return Condition({IDS: torch.tensor(token_ids([""], self.tokenizer), device=device).expand(n, -1)})

    def embeddings(self, condition: Condition) -> Condition:
        """What its text model makes of tokens: the condition of the UNet alone."""
        text: Any = self.text
        return Condition({TEXT: text(condition[IDS]).last_hidden_state})

    def encode(self, x: Tensor, noise: Tensor, condition: Condition) -> Encoding:
        return self.unet.encode(x, noise, self.embeddings(condition))

    def decode(self, encoding: Encoding) -> Tensor:
        return self.unet.decode(encoding)
