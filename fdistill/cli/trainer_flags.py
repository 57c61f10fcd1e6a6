"""Flags of Lightning's trainer that a run here does otherwise, or cannot do: each refusal names what does it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fdistill.cli.commands import UsageError

_UNUSED = {  # flag: values under which it asks for nothing, and what to do in its place
    "gradient_clip_val": ((None,), "--model.gradient_clip is the largest gradient norm of each network"),
    "gradient_clip_algorithm": ((None,), "--model.gradient_clip clips the norm of each network"),
    "accumulate_grad_batches": ((None, 1), "--model.accumulate splits the batch of a turn into micro-batches"),
    "max_epochs": ((None, -1), "the training stream has no end: --trainer.max_steps is the number of turns"),
    "min_epochs": ((None, 0), "the training stream has no end: --trainer.min_steps is the least number of turns"),
    "limit_train_batches": ((None, 1.0), "--trainer.max_steps is the number of turns"),
    "overfit_batches": ((None, 0, 0.0), "train on a smaller data set, by another --data"),
    "fast_dev_run": (
        (None, False, 0),
        "--trainer.max_steps 2 with a --trainer.default_root_dir of its own tries a run",
    ),
    "barebones": ((None, False), "--trainer.logger false and --trainer.callbacks [] leave out what takes time"),
    "sync_batchnorm": ((None, False), "no network here has batch normalisation: leave it out"),
    "reload_dataloaders_every_n_epochs": ((None, 0), "the training stream has no epochs: leave it out"),
}
_PRECISIONS = (None, "32", 32, "32-true", "bf16-mixed")
_STRATEGIES = ("auto", "replicated", "sharded")
_STOCK = ("ddp", "fsdp", "deepspeed", "dp", "xla", "single_tpu", "model_parallel", "mp")  # how Lightning's own begin


def check_trainer_flags(given: Mapping[str, Any]) -> None:
    """Raise UsageError for the first flag that means nothing here, with the option that does.

    Args:
        given: the arguments of Lightning's Trainer by name.
    """
    for name, (idle, instead) in _UNUSED.items():
        value = given.get(name)
        if not any(value == one and type(value) is type(one) for one in idle):  # 1 batch is not a share of 1.0
            raise UsageError(f"trainer.{name} is not for this trainer: {instead}; got {value}")
    precision, strategy = given.get("precision"), given.get("strategy")
    if precision not in _PRECISIONS:
        raise UsageError(
            "weights and their average are float32, and the loss scaling of fp16 does not survive two networks in a "
            f"turn: expected --trainer.precision 32-true or bf16-mixed, got {precision}"
        )
    if isinstance(strategy, str) and strategy.startswith(_STOCK):
        raise UsageError(
            "networks that take turns break strategies that wrap the module: expected --trainer.strategy replicated or "
            f"sharded, got {strategy}"
        )
    if strategy in (None, "auto") and _several(given.get("devices"), given.get("num_nodes")):
        raise UsageError(
            "several devices need a strategy: expected --trainer.strategy replicated or sharded, got "
            f"{strategy} with devices {given.get('devices')}"
        )
    _check_device(given.get("accelerator"))
    interval = given.get("val_check_interval")
    if isinstance(interval, float) and not interval.is_integer():
        raise UsageError(f"trainer.val_check_interval is a number of turns: expected a whole one, got {interval}")
    if given.get("enable_checkpointing") is False and _saves(given.get("callbacks")):
        raise UsageError(
            "trainer.enable_checkpointing false leaves nothing to LastCheckpoint and BestCheckpoint: leave it out, or "
            "them out of trainer.callbacks"
        )


def _several(devices: Any, num_nodes: Any) -> bool:
    count = len(devices) if isinstance(devices, list | tuple) else devices
    if isinstance(count, str):
        count = len(count.split(",")) if "," in count else int(count) if count.isdigit() else 1
    return (count or 1) > 1 or (num_nodes or 1) > 1


def _check_device(accelerator: Any) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = there["cuda"] or there["mps"]
    if not there.get(accelerator, True):
        raise UsageError(
            f"there is no {accelerator} device here: expected --trainer.accelerator cpu or auto, got {accelerator}; "
            "fdistill doctor tells why"
        )


def _saves(callbacks: Sequence[Any] | None) -> bool:
    names = [getattr(callback, "class_path", type(callback).__name__) for callback in callbacks or ()]
    return any(name.endswith(("LastCheckpoint", "BestCheckpoint", "ModelCheckpoint")) for name in names)
