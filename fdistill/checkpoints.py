"""Reading checkpoints without executing anything: a run's .ckpt (weights_only) or an exported folder."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from fdistill.denoiser import Denoiser
from fdistill.generative_model import GenerativeModel

RECORD = "fdistill"
"""Key of a run checkpoint, and stem of a JSON file in an exported folder, under which the model is described."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line."""


def read_run_checkpoint(path: Path | str) -> dict[str, Any]:
    """The whole dictionary of a .ckpt file, on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated, no checkpoint, or would have to execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: expected a .ckpt file or an exported folder; check the path")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is truncated or no checkpoint: take an earlier one, e.g. a best-*.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds objects other than tensors and plain values, which are never executed"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged: take an earlier one, e.g. a best-*.ckpt") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no Lightning checkpoint: expected a state_dict inside")
    return checkpoint


def load_model(path: Path | str) -> GenerativeModel:
    """The generative model of a run checkpoint (its EMA weights) or of an exported folder.

    Raises:
        CheckpointError: with one line that says what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        from fdistill.export.folder import read_folder  # the folder needs diffusers' pipelines, which a .ckpt does not

        return read_folder(path)
    checkpoint = read_run_checkpoint(path)
    if RECORD not in checkpoint:
        raise CheckpointError(
            f"{path} was not written by fdistill: it has no {RECORD!r} record; import the model first"
        )
    weights = {
        name.removeprefix("ema.average."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("ema.average.")
    }
    return model_from_record(checkpoint[RECORD], weights, path)


def model_record(model: GenerativeModel) -> dict[str, Any]:
    """Plain values from which `model_from_record` rebuilds the model around its weights."""
    return {
        "kind": model.kind,
        "denoiser": model.denoiser.spec(),
        "sigmas": model.sigmas.tolist(),
        "guidance": model.guidance,
        "facts": model.facts,
    }


def model_from_record(record: dict[str, Any], weights: dict[str, torch.Tensor], source: Path) -> GenerativeModel:
    """Rebuild the model that `record` describes and load `weights` into its denoiser.

    Raises:
        CheckpointError: if the record is incomplete or the weights do not fit.
    """
    try:
        denoiser = Denoiser.from_spec(record["denoiser"])
        sigmas = torch.tensor(record["sigmas"], dtype=torch.float64)
        model = GenerativeModel(denoiser.eval(), record["kind"], sigmas, record["guidance"], record["facts"])
    except KeyError as error:
        raise CheckpointError(f"the record of {source} lacks {error}: it was written by another version") from error
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"the record of {source} is no description of a model: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    load_weights(denoiser, weights, source)
    return model


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
