"""A LoRA adapter (arXiv 2106.09685) merged into the weights of a network: W + alpha / rank * B A, in float32."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from fdistill.core.weight_files import (
    BUILD_ERRORS,
    CheckpointError,
    brief,
    check_finite_weights,
    read_safetensors,
    shown,
)

METADATA = "lora_adapter_metadata"
"""Under which diffusers keeps what peft knows of an adapter."""

_FACTORS = {  # after the module's name: of peft, and of diffusers before it
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}


def merged(weights: dict[str, Tensor], file: Path, part: str) -> dict[str, Tensor]:
    """The weights with the adapter added, those that it changes in float32.

    Args:
        weights: of the stock network, by its names.
        file: .safetensors with factors under the network's own names, as save_lora_weights of diffusers and peft write.
        part: name of the network in its pipeline, which may stand before those names.

    Raises:
        CheckpointError: for a file that is none such, or an adapter of another network or of text encoders.
    """
    tensors = read_safetensors(file, "save or download it again")
    check_finite_weights(tensors, file)
    layers, alphas = _layers(tensors, file, part), _alphas(file, part)
    changed = {}
    for name, factors in layers.items():
        weight = weights.get(f"{name}.weight")
        if weight is None or not {"down", "up"} <= factors.keys():
            what = "has no such layer" if weight is None else "needs both factors of it"
            raise CheckpointError(f"{file} is an adapter of another network: this one {what}: got {shown(name)}")
        down, up = factors["down"].float(), factors["up"].float()
        alpha = float(factors["alpha"]) if "alpha" in factors else alphas(name)
        scale = 1.0 if alpha is None else alpha / len(down)
        try:
            delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        except RuntimeError as error:
            raise CheckpointError(
                f"{file} is an adapter of another network: {shown(name)} is of {list(weight.shape)} here, got factors "
                f"of {list(down.shape)} and {list(up.shape)}"
            ) from error
        changed[f"{name}.weight"] = weight.float() + scale * delta
    return weights | changed


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
