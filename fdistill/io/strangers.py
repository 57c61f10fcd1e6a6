"""What lies at a path where a model of ours is expected, and which command or option takes it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fdistill.core.file_suffixes import ARCHIVES, IMAGES
from fdistill.core.weight_files import shown

_LORA_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_config.json")
_LORA_NAMES = (".lora_", "lora.up.", "lora.down.", "_lora.", "lora_A.", "lora_B.")
_OF_FOLDERS = ("fdistill.json", "model_index.json", "config.json", "scheduler_config.json")  # each tells of one
_OF_A_NETWORK = "holds the weights of a network of diffusers alone: fdistill import {} TARGET"
_BY_SUFFIX = {
    (".npz", ".npy"): "holds arrays, no model: fdistill evaluate takes samples of a .npz or .npy",
    (".pkl",): "is a pickle of EDM or of something else, no model of fdistill yet: fdistill import {} TARGET",
    (".yaml", ".yml", ".json"): "is a configuration, no model: give the checkpoint of its run",
    IMAGES + ARCHIVES: "holds images, no model: fdistill evaluate takes a folder or an archive of them",
}
_IN_RUNS = ("last.ckpt", "checkpoints/last.ckpt", "*/checkpoints/last.ckpt", "*.ckpt", "checkpoints/*.ckpt")
_LORA = (
    "is a LoRA, which changes a network and is none: fdistill import BASE TARGET --lora FILE makes a teacher of its "
    "base and it"
)


def run_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to give in place of a run's folder; None for any other folder, also one of diffusers with some."""
    if (folder / "model_index.json").is_file():
        return None
    return next((file for pattern in _IN_RUNS for file in sorted(folder.glob(pattern))), None)


def what_lies_at(path: Path) -> str | None:
    """One line that begins with the path: what it is, and what to do with it; None where that is not known.

    Of folders that a model can be read from (exported, or a ConsistencyModelPipeline) and of checkpoints nothing is
    known here.
    """
    said = _of_folder(path) if path.is_dir() else _of_file(path) if path.is_file() else None
    return None if said is None else f"{path} {said}"


def _of_folder(path: Path) -> str | None:
    if (path / "fdistill.json").is_file():
        return None
    checkpoint = run_checkpoint(path)
    if checkpoint is not None:
        return f"is the folder of a run: give its checkpoint, {checkpoint}"
    if any((path / name).is_file() for name in _LORA_FILES):
        return _LORA
    for name, what in (("model_index.json", "a pipeline"), ("config.json", "a network")):
        kind = _class_name(path / name)
        if kind == "ConsistencyModelPipeline":
            return None
        if kind is not None:
            remedy = f"make a teacher of it by fdistill import {path} TARGET"
            return f"holds {what} of diffusers ({kind}), no model of fdistill yet: {remedy}"
    if (path / "latents.json").is_file():
        return f"holds latents of fdistill encode, no model: train on them by --data LatentFolder --data.folder {path}"
    inner = [file.parent for pattern in ("*/config.json", "snapshots/*/*.json") for file in sorted(path.glob(pattern))]
    if inner:
        average = next((folder for folder in inner if "ema" in folder.name), inner[0])
        return f"holds no model itself, its sub-folders may: fdistill import {average} TARGET"
    if any(file.suffix.lower() in IMAGES for pattern in ("*", "*/*") for file in path.glob(pattern)):
        return f"is a folder of images, no model: fdistill evaluate takes it, and training by --data.folder {path}"
    return None


def _of_file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _of_tensors(path)
    if path.name in _OF_FOLDERS:
        return f"describes the folder that it lies in: give {path.parent}"
    if suffix in (".bin", ".pt", ".pth") and (path.parent / "config.json").is_file():
        return _OF_A_NETWORK.format(path.parent)
    said = next((said for suffixes, said in _BY_SUFFIX.items() if suffix in suffixes), None)
    return None if said is None else said.format(path)


def _of_tensors(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError):
        return "is truncated or no safetensors file: save or download it again"
    if any(part in name for name in names for part in _LORA_NAMES):
        return _LORA
    if {"latents", "samples"} <= set(names):
        return f"holds teacher pairs, no model: --model.pairs {path}"
    if (path.parent / "fdistill.json").is_file():
        return f"holds the weights of an exported model alone: give its folder, {path.parent}"
    if (path.parent / "config.json").is_file():
        return _OF_A_NETWORK.format(path.parent)
    return (
        "holds tensors alone: say what they are by --config FILE.yaml, which has a denoiser section with network and "
        f"preconditioning; fdistill import {path} TARGET --config FILE.yaml makes a teacher of them"
    )


def _class_name(file: Path) -> str | None:
    """What a configuration of diffusers says it is of; None where it is none."""
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["_class_name"] if file.stat().st_size < 2**20 else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return shown(kind) if isinstance(kind, str) else None
