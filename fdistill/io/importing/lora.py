"""LoRA files (arXiv 2106.09685): added to the weights of a network, W + alpha / rank * B A, or beside them."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from fdistill.core.weight_files import (
    BUILD_ERRORS,
    CheckpointError,
    brief,
    check_finite_weights,
    file_size,
    read_safetensors,
    shown,
)
from fdistill.io.stock_pipeline import METADATA
from fdistill.models.adapters import load_adapter_state, with_adapters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import TextToImageNetwork

_FACTORS = {  # after the module's name: of peft, and of diffusers before it
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}


class Factors(NamedTuple):
    """The adapter of one layer: scale B A is added to its weight."""

    down: Tensor  # A
    up: Tensor  # B
    scale: float  # alpha / rank

    @property
    def delta(self) -> Tensor:
        """scale B A in float32, [out, in x height x width]."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


def merged(weights: dict[str, Tensor], file: Path, part: str) -> dict[str, Tensor]:
    """The weights with the adapter added, those that it changes in float32.

    Args:
        weights: of the stock network, by its names.
        file: .safetensors with factors under the network's own names, as save_lora_weights of diffusers and peft write.
        part: name of the network in its pipeline, which may stand before those names.

    Raises:
        CheckpointError: for a file that is none such, or an adapter of another network or of text encoders.
    """
    changed = {}
    for name, factors in _fitting(file, part, weights).items():
        weight = weights[f"{name}.weight"]
        changed[f"{name}.weight"] = weight.float() + factors.delta.to(weight.device).reshape(weight.shape)
    return weights | changed


@torch.no_grad()
def with_lora_added(denoiser: Denoiser, file: Path) -> Denoiser:
    """A copy of a text-to-image denoiser with the adapter of a file added to its weights.

    Raises:
        CheckpointError: as of `merged`, or for a network that is no stock one.
    """
    copied = copy.deepcopy(denoiser)
    network = _stock_of(copied, file)
    weights = dict(network.stock.named_parameters())
    for name, factors in _fitting(file, network.family.part, weights).items():
        weight = weights[f"{name}.weight"]
        weight += factors.delta.to(weight).reshape(weight.shape)
    return copied


def with_lora_beside(denoiser: Denoiser, file: Path) -> tuple[Denoiser, dict[str, Any]]:
    """A denoiser that shares the given one's weights, with the adapter of a file as its own.

    Returns:
        It, and the rank, alpha and targets by which `with_adapters` makes such adapters.

    Raises:
        CheckpointError: as of `with_lora_added`, or for an adapter of several ranks or scales.
    """
    network = _stock_of(denoiser, file)
    layers = _fitting(file, network.family.part, dict(network.stock.named_parameters()))
    kinds = sorted({(len(factors.down), factors.scale) for factors in layers.values()})
    if len(kinds) > 1:
        said = ", ".join(f"rank {rank} scaled by {scale:g}" for rank, scale in kinds[:3])
        raise CheckpointError(
            f"{file} becomes a student's adapter if all of its layers have one rank and scale: got {said}; add it to a "
            "full student instead (roles FullCopies, or SharedBase with student full)"
        )
    rank, scale = kinds[0]
    how: dict[str, Any] = {"rank": rank, "alpha": scale * rank, "targets": [f"stock.{name}" for name in sorted(layers)]}
    adapted = with_adapters(denoiser, **how)
    state: dict[str, Tensor] = {}
    for name, factors in layers.items():
        prefix = f"network.stock.{name}"
        state |= {f"{prefix}.lora_A.weight": factors.down, f"{prefix}.lora_B.weight": factors.up}
    load_adapter_state(adapted, state)
    return adapted, how


def _stock_of(denoiser: Denoiser, file: Path) -> TextToImageNetwork:
    file_size(file)
    if not isinstance(denoiser.network, TextToImageNetwork):
        kind = type(denoiser.network).__name__
        raise CheckpointError(f"{file} is a LoRA of a stock text-to-image network: got a teacher in a {kind}")
    return denoiser.network


def _fitting(file: Path, part: str, weights: Mapping[str, Tensor]) -> dict[str, Factors]:
    """The adapter of each layer, all of which the network of these weights has, in these shapes."""
    tensors = read_safetensors(file, "save or download it again")
    check_finite_weights(tensors, file)
    layers, alphas = _layers(tensors, file, part), _alphas(file, part)
    found, wrong = {}, []
    for name, factors in layers.items():
        weight = weights.get(f"{name}.weight")
        if weight is None:
            wrong.append(f"no such layer as {shown(name)}")
        elif not {"down", "up"} <= factors.keys():
            wrong.append(f"both factors are needed of {shown(name)}")
        elif not _fits(weight, down := factors["down"], up := factors["up"]):
            shapes = f"{list(weight.shape)}, and its factors of {list(down.shape)} and {list(up.shape)}"
            wrong.append(f"{shown(name)} is of {shapes}")
        else:
            alpha = float(factors["alpha"]) if "alpha" in factors else alphas(name)
            found[name] = Factors(down, up, 1.0 if alpha is None else alpha / len(down))
    if wrong:
        raise CheckpointError(
            f"{file} is an adapter of another network ({len(wrong)} of its {len(layers)} layers do not fit): "
            f"{'; '.join(wrong[:3])}; give one that was made for this base"
        )
    return found


def _fits(weight: Tensor, down: Tensor, up: Tensor) -> bool:
    if min(weight.ndim, down.ndim, up.ndim) < 2:
        return False
    (out, inner), (rank, read), (written, last) = (
        (each.shape[0], each.shape[1:].numel()) for each in (weight, down, up)
    )
    return rank > 0 and (written, last, read) == (out, rank, inner)


def _layers(tensors: dict[str, Tensor], file: Path, part: str) -> dict[str, dict[str, Tensor]]:
    """The factors of each layer, by its name in the network."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        bare = name.removeprefix("base_model.model.").removeprefix(f"{part}.")
        if ending is None or bare.startswith(("text_encoder", "lora_")):
            raise CheckpointError(
                f"{file} is no adapter of a {part} in the names of diffusers or peft (NAME.lora_A.weight, "
                f"NAME.lora_B.weight): got {shown(name)}; load it in diffusers and save it by save_lora_weights"
            )
        layers.setdefault(bare.removesuffix(ending), {})[_FACTORS[ending]] = value
    if not layers:
        raise CheckpointError(f"{file} holds no tensors: expected the factors of an adapter")
    return layers


def _alphas(file: Path, part: str) -> Callable[[str], float | None]:
    """What the file's metadata says of alpha, for each layer; None where it says nothing."""
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA)
    try:
        known = {key.removeprefix(f"{part}."): value for key, value in json.loads(text or "{}").items()}
        of_layers = {name: float(value) for name, value in (known.get("alpha_pattern") or {}).items()}
        others = None if known.get("lora_alpha") is None else float(known["lora_alpha"])
    except BUILD_ERRORS as error:
        raise CheckpointError(f"{file}: its {METADATA} is no description of an adapter: got {brief(text)}") from error
    scaled = [name for name in ("use_dora", "use_rslora") if known.get(name)]
    if scaled:
        raise CheckpointError(f"{file} is an adapter with {scaled[0]}: expected a plain one; merge it in diffusers")
    return lambda layer: next((alpha for name, alpha in of_layers.items() if f".{layer}".endswith(f".{name}")), others)
