"""Low-rank adapters: a network of its own whose large weights are those of another one, which stay as they are.

A layer computes W x + (alpha / rank) B A x (LoRA, arXiv 2106.09685). W is the very tensor of the network that it was
made from, so that any number of networks share one base in memory, and each learns its own A and B. Nothing is ever
switched: each network is a tree of modules of its own.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from fdistill.models.denoiser import Denoiser
from fdistill.models.quantised import Int8Conv2d, Int8Linear

Named = Literal["attention", "dmd2", "all"]
"""Layers by a name: of attention; those of DMD2's LoRA of SDXL (arXiv 2405.14867); or every plain linear layer and
convolution of two dimensions, without groups, that is not smaller than the rank."""

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": (
        *("to_q", "to_k", "to_v", "to_out.0", "qkv"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text in transformers of two streams
    ),
    "dmd2": (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
    ),
}
"""What each name stands for: endings of the names of layers, whole between dots."""

_FACTORS = ("lora_A", "lora_B")


class LowRank(nn.Module):
    """A layer whose weight and bias another network shares, and two factors of its own; mixed in before the layer."""

    weight: Tensor
    lora_A: nn.Linear | nn.Conv2d  # to the rank; [rank, in_features] or [rank, in_channels, height, width]
    lora_B: nn.Linear | nn.Conv2d  # and back, 0 at first; [out_features, rank] or [out_channels, rank, 1, 1]
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(super().forward(x), self.lora_B(self.lora_A(x)), alpha=self.scale)


class LowRankLinear(LowRank, nn.Linear):
    """A linear layer with an adapter."""


class LowRankConv2d(LowRank, nn.Conv2d):
    """A convolution with an adapter."""


class LowRankInt8Linear(LowRank, Int8Linear):
    """A linear layer held in int8 with an adapter."""

    whole = LowRankLinear


class LowRankInt8Conv2d(LowRank, Int8Conv2d):
    """A convolution held in int8 with an adapter."""

    whole = LowRankConv2d


_KINDS: dict[type[nn.Module], type[LowRank]] = {
    nn.Linear: LowRankLinear,
    nn.Conv2d: LowRankConv2d,
    Int8Linear: LowRankInt8Linear,
    Int8Conv2d: LowRankInt8Conv2d,
}


def with_adapters(
    denoiser: Denoiser,
    rank: int,
    alpha: float | None = None,
    targets: Named | Sequence[str] = "attention",
    generator: torch.Generator | None = None,
) -> Denoiser:
    """A denoiser of the same predictions, whose adapters alone learn; it shares all other weights with the given one.

    The given one's weights require no gradient from then on. A is drawn as peft draws it (uniform of Kaiming, a =
    sqrt 5, on the CPU) and B is 0; both are float32 at the least.

    Args:
        denoiser: without adapters; on any device.
        rank: of each adapter, >= 1.
        alpha: the adapters are scaled by alpha / rank; None for rank.
        targets: which layers of its network: a name of them, or endings of the layers' own names.
        generator: of A, on the CPU; None for one of seed 0.

    Raises:
        ValueError: for targets that match nothing or no plain layer, a rank above a layer's least dimension, weights
            that are no floating-point numbers, or a network that has adapters.
    """
    if rank < 1 or (alpha is not None and not alpha > 0):
        raise ValueError(f"adapters have a rank of at least 1 and an alpha above 0: got rank {rank}, alpha {alpha}")
    if adapter_layers(denoiser):
        raise ValueError(f"this {type(denoiser.network).__name__} has adapters already: merge them first")
    copied = sharing_copy(denoiser.requires_grad_(False))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for layer in _targeted(copied.network, targets, rank).values():
        _adapt(layer, rank, (rank if alpha is None else alpha) / rank, generator)
    return copied


def sharing_copy(denoiser: Denoiser) -> Denoiser:
    """The same denoiser as modules of its own: its adapters are copied, and all other weights and buffers shared."""
    own = {id(factor) for factor in adapter_parameters(denoiser)}
    shared = [tensor for tensor in (*denoiser.parameters(), *denoiser.buffers()) if id(tensor) not in own]
    return copy.deepcopy(denoiser, {id(tensor): tensor for tensor in shared})


def merged(denoiser: Denoiser) -> Denoiser:
    """A denoiser of plain layers and weights of its own, W + (alpha / rank) B A, summed and kept in float32 at the
    least; a copy where there are no adapters."""
    copied = copy.deepcopy(denoiser)
    copied.hold_in(torch.float32)
    for layer in adapter_layers(copied).values():
        layer.weight = nn.Parameter(layer.weight + layer_delta(layer), layer.weight.requires_grad)
        for name in (*_FACTORS, "scale"):
            delattr(layer, name)
        plain: Any = next(kind for kind, adapted in _KINDS.items() if type(layer) is adapted)
        layer.__class__ = plain
    return copied


def layer_delta(layer: LowRank) -> Tensor:
    """(alpha / rank) B A, of the shape of the layer's weight and in the precision of its factors."""
    down, up = (cast(Tensor, getattr(layer, name).weight).detach().flatten(1) for name in _FACTORS)
    return layer.scale * (up @ down).reshape(layer.weight.shape)


def adapter_layers(module: nn.Module) -> dict[str, LowRank]:
    """The layers that have adapters, by their names inside of a module."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LowRank)}


def adapter_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """All factors, A before B of each layer, in the order of the layers."""
    for layer in adapter_layers(module).values():
        for name in _FACTORS:
            yield getattr(layer, name).weight


def own_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What a network does not share, by name: its factors where it has adapters, else all of its parameters."""
    factors = set(map(id, adapter_parameters(network)))
    return {name: value for name, value in network.named_parameters() if not factors or id(value) in factors}


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The factors by the names NAME.lora_A.weight and NAME.lora_B.weight inside of a module, detached; not copied."""
    layers = adapter_layers(module).items()
    return {
        f"{n}.{f}.weight" if n else f"{f}.weight": getattr(layer, f).weight.detach()
        for n, layer in layers
        for f in _FACTORS
    }


@torch.no_grad()
def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy factors into the adapters of a module, all of them.

    Raises:
        ValueError: for other layers or shapes than it has; nothing is copied then.
    """
    own = adapter_state(module)
    expected, found = ({name: list(value.shape) for name, value in of.items()} for of in (own, state))
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differ:
        shown = "; ".join(f"{n} expected {expected.get(n, 'none')}, got {found.get(n, 'none')}" for n in differ[:3])
        raise ValueError(
            f"an adapter of another network, rank or choice of layers ({len(differ)} tensors differ): {shown}; give "
            "one that was made for this network, or adapters of its rank and layers"
        )
    for name, value in state.items():
        own[name].copy_(value)


def shares(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights of a module but its adapters are, as objects, weights of the other."""
    theirs, own = set(map(id, other.parameters())), set(map(id, adapter_parameters(one)))
    return all(id(parameter) in theirs | own for parameter in one.parameters())


def _adapt(layer: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
    """Give a plain layer its factors, in place."""
    adapted = cast(LowRank, layer)
    weight = adapted.weight
    how: dict[str, Any] = {"bias": False, "device": "meta", "dtype": torch.promote_types(weight.dtype, torch.float32)}
    if isinstance(layer, nn.Conv2d):
        window = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        down: nn.Module = nn.Conv2d(layer.in_channels, rank, cast(Any, layer.kernel_size), **window, **how)
        up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, **how)
    else:
        linear = cast(nn.Linear, layer)
        down, up = nn.Linear(linear.in_features, rank, **how), nn.Linear(rank, linear.out_features, **how)
    bound = 1 / math.sqrt(weight[0].numel())
    for factor, limit in ((down, bound), (up, 0.0)):
        drawn = torch.empty(cast(Tensor, factor.weight).shape, dtype=how["dtype"])
        drawn = drawn.uniform_(-limit, limit, generator=generator) if limit else drawn.zero_()
        factor.weight = nn.Parameter(drawn.to(weight.device))
    layer.__class__ = _KINDS[type(layer)]
    adapted.lora_A, adapted.lora_B, adapted.scale = cast(Any, down), cast(Any, up), scale


def _targeted(network: nn.Module, targets: Named | Sequence[str], rank: int) -> dict[str, nn.Module]:
    """The layers that get adapters, by name."""
    layers = {
        name: module for name, module in network.named_modules() if isinstance(getattr(module, "weight", None), Tensor)
    }
    plain = {
        name: layer for name, layer in layers.items() if type(layer) in _KINDS and getattr(layer, "groups", 1) == 1
    }
    if targets == "all":
        found = {name: layer for name, layer in plain.items() if _least(layer) >= rank}
    else:
        endings = _endings(targets)
        found = {name: layer for name, layer in layers.items() if f".{name}".endswith(endings)}
    if not found:
        raise ValueError(_no_match(network, targets, plain))
    for name, layer in found.items():
        _check_layer(name, layer, name in plain, rank)
    return found


def _endings(targets: Named | Sequence[str]) -> tuple[str, ...]:
    if isinstance(targets, str) and targets not in TARGETS:
        raise ValueError(f"targets are one of {', '.join(get_args(Named))}, or a list of endings: got {targets!r}")
    return tuple(f".{ending}" for ending in (TARGETS[targets] if isinstance(targets, str) else targets))


def _least(layer: nn.Module) -> int:
    return min(cast(Tensor, layer.weight).flatten(1).shape)


def _no_match(network: nn.Module, targets: Named | Sequence[str], plain: Mapping[str, nn.Module]) -> str:
    said = targets if isinstance(targets, str) else ", ".join(targets)
    kind = type(network).__name__
    if not plain:
        return f"adapters are for plain linear layers and convolutions, of which this {kind} has none: train it in full"
    largest = max(map(_least, plain.values()))
    if targets == "all":
        return f"no layer of this {kind} has as many dimensions as the adapters' rank: expected one up to {largest}"
    names = list(plain)
    some = ", ".join(names[:: max(1, len(names) // 5)][:5])
    return f"targets match no layer of this {kind}: got {said}; its layers are {some} ..., or give all"


def _check_layer(name: str, layer: nn.Module, is_plain: bool, rank: int) -> None:
    weight, kind = cast(Tensor, layer.weight), type(layer).__name__
    if not is_plain:
        raise ValueError(
            f"adapters are for plain Linear and Conv2d without groups: got {name}, a {kind}; choose targets without it"
        )
    is_float = type(weight.data) is Tensor and weight.is_floating_point() and weight.element_size() > 1
    if not is_float and not isinstance(layer, Int8Linear | Int8Conv2d):
        raise ValueError(
            f"adapters stand on weights of float32, bfloat16 or float16, or on what teacher_dtype int8 makes of them: "
            f"got {name}, of {weight.dtype} in {type(weight.data).__name__}; load the base without quantisation"
        )
    if rank > _least(layer):
        raise ValueError(
            f"an adapter's rank is at most the least dimension of each layer: expected up to {_least(layer)} for "
            f"{name} ({kind} of {list(weight.shape)}), got {rank}; lower the rank or choose targets without it"
        )
