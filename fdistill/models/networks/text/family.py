"""What differs between the families of text-to-image networks: arguments, constants, packing, sign, features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fdistill.models.condition import Condition, Entry, Takes

TEXT, POOLED = "encoder_hidden_states", "pooled_projections"
"""What most networks call the embeddings of a prompt's tokens, and that of the whole."""

MASK = Entry((None,))
"""Of tokens: 1 where there is one, 0 where a prompt has ended, int64 [B, L]."""


def tokens(width: int) -> Entry:
    """Embeddings of a prompt's tokens, [B, L, width]."""
    return Entry((None, width), torch.float32)


def vector(width: int) -> Entry:
    """One embedding of a whole prompt, [B, width]."""
    return Entry((width,), torch.float32)


class PromptOutputs(NamedTuple):
    """What `encode_prompt` of a pipeline returns.

    Attributes:
        outputs: place of each tensor in what it returns, by the network's argument.
        null: the same for the negative prompt that a user did not give; empty where '' is encoded in its place.
        mask: argument that tells the tokens of a prompt; the network reads no others, so that none are stored. None
            where it reads the padding too.
    """

    outputs: Mapping[str, int]
    null: Mapping[str, int] = {}
    mask: str | None = None

    @classmethod
    def masked(cls, mask: str, with_null: bool = True) -> "PromptOutputs":
        """Embeddings of tokens and their mask, then those of the negative prompt."""
        return cls({TEXT: 0, mask: 1}, {TEXT: 2, mask: 3} if with_null else {}, mask)


class Family(ABC):
    """One family of stock networks, in the words of diffusers.

    Attributes:
        stock: name of the network's class.
        part: its folder in a pipeline.
        pipelines: names of the pipelines whose network is called so.
        encoded: what these make of a prompt.
        time_scale: of a flow, the network's time input at t = 1; None on a path of timesteps.
        guided: arguments of the pipeline's call under which it evaluates the negative prompt too; None where there is
            no negative prompt.
        null_first: whether a pipeline that evaluates both prompts in one batch has the negative one first.
        hands_on_generator: whether a pipeline hands its generator to the steps of its scheduler.
        has_null: whether its networks were trained without a prompt, and not only at embedded guidance.
        norm: of what its pipeline brings a guided prediction to the size of the unguided one, see `Guidance`; None
            where it does not.
        rescaling: argument of the pipeline's call by which it does so for those who ask, where it has that argument,
            and of what.
    """

    stock: ClassVar[str]
    part: ClassVar[str] = "transformer"
    pipelines: ClassVar[tuple[str, ...]]
    encoded: ClassVar[PromptOutputs]
    time_scale: float | None = None
    guided: ClassVar[Mapping[str, Any] | None] = {"guidance_scale": 2.0}
    null_first: ClassVar[bool] = True
    hands_on_generator: ClassVar[bool] = False
    has_null: ClassVar[bool] = True
    norm: ClassVar[Literal["row", "token"] | None] = None
    rescaling: ClassVar[tuple[str, Literal["sample", "cap"]]] = ("guidance_rescale", "sample")

    def __init__(
        self, config: Mapping[str, Any], sample_shape: Sequence[int], vae_factor: int, guidance: float | None
    ) -> None:
        """Args:
        config: of the stock network, complete.
        sample_shape: channels, height and width of its latents.
        vae_factor: side of an image for each unit of the latents' side.
        guidance: scale that the network is told, where it has one embedded.

        Raises:
            ValueError: where it has none, or a configuration that is not of this family.
        """
        self.config, self.vae_factor = config, vae_factor
        self.channels, self.height, self.width = sample_shape
        self.embeds_guidance = bool(config.get("guidance_embeds"))
        if guidance is not None and not self.embeds_guidance:
            raise ValueError(f"this {self.stock} has no guidance embedded, which would take a scale: got {guidance}")
        self.guidance = guidance
        self.check()

    @classmethod
    def latents(cls, config: Mapping[str, Any], vae_factor: int) -> tuple[int, int]:
        """Channels of its latents, and the side of an image for each unit of theirs, behind a VAE of that factor."""
        return config["in_channels"], vae_factor

    @classmethod
    def sample_shape(cls, config: Mapping[str, Any], side: Sequence[int], vae_factor: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of height and width `side`.

        Raises:
            ValueError: where the VAE does not divide that.
        """
        channels, factor = cls.latents(config, vae_factor)
        if any(length < factor or length % factor for length in side):
            raise ValueError(
                f"a resolution is a multiple of {factor}, by which its latents are smaller: got {side[0]} x {side[1]}"
            )
        return channels, side[0] // factor, side[1] // factor

    def check(self) -> None:
        """Raises ValueError where its configuration asks for more than a prompt, or sides do not fit its patches."""
        made = self.config.get("out_channels") or self.config["in_channels"]
        if made not in (self.channels, 2 * self.channels) or self.config["in_channels"] != self.channels:
            raise ValueError(
                f"a denoiser makes the channels that it sees, or a variance beside each: expected {self.channels}, got "
                f"in_channels={self.config['in_channels']} and out_channels={made}"
            )
        self.check_patches(self.patch)

    def check_patches(self, patch: int) -> None:
        """Raises ValueError where the latents' sides are no multiples of `patch`."""
        if self.height % patch or self.width % patch:
            raise ValueError(
                f"latents of this {self.stock} have sides that are multiples of {patch}: got {self.height} x "
                f"{self.width}; choose a resolution that is a multiple of {patch * self.vae_factor}"
            )

    @property
    def patch(self) -> int:
        """Side of the patches that become tokens."""
        return self.config.get("patch_size") or 1

    @property
    @abstractmethod
    def takes(self) -> Takes:
        """The tensors of its condition, under its own (dotted) argument names."""

    @abstractmethod
    def feature_channels(self, block: int) -> int:
        """Channels of the features behind that block."""

    def constants(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments beside the condition, under dotted names."""
        return {"hidden_states": x, "timestep": noise}

    def __call__(self, net: nn.Module, x: Tensor, noise: Tensor, condition: Condition) -> Tensor:
        """The prediction F, [B, C, h, w], of latents x, the time input noise [B] and a condition of B samples."""
        given = self.given(x, condition)
        arguments: dict[str, Any] = {}
        for name, value in {**given, **self.constants(x, noise, given)}.items():
            outer, _, inner = name.partition(".")
            if inner:
                arguments.setdefault(outer, {})[inner] = value
            else:
                arguments[name] = value
        return self.prediction(net(**arguments, return_dict=False)[0])

    def given(self, x: Tensor, condition: Condition) -> dict[str, Tensor]:
        """The condition's tensors that it takes, those of floats in the type of x."""
        return {
            name: condition[name].to(x.dtype) if entry.dtype.is_floating_point else condition[name]
            for name, entry in self.takes.items()
        }

    def from_call(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """The condition's tensors in a call of the stock network, whose arguments have dotted names."""
        found = {name: arguments.get(name) for name in self.takes}
        first = next(value for value in found.values() if value is not None)
        every = torch.ones(first.shape[:2], dtype=torch.int64)  # of tokens, where no mask says otherwise
        return {
            name: every if value is None else value.long() if self.takes[name] == MASK else value
            for name, value in found.items()
        }

    def prediction(self, output: Any) -> Tensor:
        """F of what the network returns: without a variance."""
        return output[:, : self.channels]

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """What features may be taken behind, in the order of evaluation."""
        blocks: Any = net.transformer_blocks
        return list(blocks)

    def middle(self, net: nn.Module) -> int:
        """The number of the block behind which they are taken where nobody names one."""
        return (len(self.blocks(net)) - 1) // 2

    def tap(self, output: Any, condition: Condition) -> Tensor:
        """The features [B, C, h', w'] of that output: of image tokens at their places."""
        return self.laid_out(output)

    def laid_out(self, image_tokens: Tensor) -> Tensor:
        """Tokens [B, S, C] in rows and columns, [B, C, h', w']."""
        return image_tokens.transpose(1, 2).unflatten(2, (self.height // self.patch, self.width // self.patch))

    def told_guidance(self, x: Tensor) -> Tensor | None:
        """The scale of embedded guidance, [B]; None where it has none.

        Raises:
            ValueError: where it has one and no scale was given.
        """
        if not self.embeds_guidance:
            return None
        if self.guidance is None:
            raise ValueError(f"this {self.stock} is told a guidance scale: expected guidance, got none")
        return torch.full((len(x),), self.guidance, device=x.device)
