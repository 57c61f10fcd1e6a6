"""Weights and configurations from files that others wrote: nothing is executed, and every error is one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_STOCK_WEIGHTS = "diffusion_pytorch_model"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line."""


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path | str) -> None:
    """load_state_dict whose error is one line that names the first misfits.

    Raises:
        CheckpointError: if a tensor is missing, left over, or has another shape.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    misfits = [f"{name} missing" for name in expected.keys() - found.keys()]
    misfits += [f"{name} unexpected" for name in found.keys() - expected.keys()]
    misfits += [
        f"{name} expected {expected[name]}, got {found[name]}"
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    if misfits:
        shown = "; ".join(sorted(misfits)[:3])
        raise CheckpointError(
            f"{source} is a checkpoint of another architecture ({len(misfits)} tensors differ): {shown}"
        )
    module.load_state_dict(weights)


def read_json(path: Path, what: str = "a file of an exported model") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        CheckpointError: if it is missing or broken.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}: expected {what}; check the path") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no readable JSON: expected {what}, got an error: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object: expected {what}, got {type(value).__name__}")
    return value


def read_safetensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name.

    Raises:
        CheckpointError: if it is missing or broken, with the remedy.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the folder is incomplete; {remedy}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {remedy}") from error


def read_stock_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that diffusers' save_pretrained wrote into `folder`, of one file or of several shards.

    Safetensors come first; a .bin is read with weights_only. Attention layers of before diffusers 0.15 get the names
    that they have today.

    Raises:
        CheckpointError: if there are none, or they are broken.
    """
    remedy = "save or download it again"
    index = folder / f"{_STOCK_WEIGHTS}.safetensors.index.json"
    variants = sorted(folder.glob(f"{_STOCK_WEIGHTS}*.safetensors"), key=lambda path: len(path.name))
    pickled = folder / f"{_STOCK_WEIGHTS}.bin"
    weights: dict[str, torch.Tensor] = {}
    if index.is_file():
        shards = read_json(index, "the index of a network's shards").get("weight_map", {})
        for name in sorted(set(shards.values())):
            weights |= read_safetensors(folder / Path(name).name, remedy)
    elif variants:
        weights = read_safetensors(variants[0], remedy)  # the plain name before one like .fp16.
    elif pickled.is_file():
        weights = _read_pickled(pickled)
    else:
        raise CheckpointError(f"{folder} holds no weights: expected {_STOCK_WEIGHTS}.safetensors; {remedy}")
    return {_todays_name(name): value for name, value in weights.items()}


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, or a pickle of more than tensors, which is never executed: convert it to safetensors "
            "where you trust it (save_pretrained of diffusers does)"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no tensors by name: convert it to safetensors where you trust it")
    return weights


def _todays_name(name: str) -> str:
    return ".".join(_OLD_ATTENTION.get(part, part) for part in name.split("."))
