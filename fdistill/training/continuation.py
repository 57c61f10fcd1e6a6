"""A run that continues: its optimisers get the numbers of today's configuration, and no other one's memory."""

from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch.optim import Optimizer

from fdistill.core.distributed import on_rank_0
from fdistill.core.fingerprints import fingerprint

_NUMBERS = ("betas", "eps", "alpha", "momentum", "dampening", "lr_decay")  # beside the learning rate and weight decay
_SWITCHES = ("fused", "foreach")  # of how a step is computed, not of what it is


class Continuation(L.Callback):
    """Holds what a checkpoint was trained with against what continues it, and lets changed numbers take effect.

    torch's optimisers take all of their settings from the state that they load. Here a learning rate that was
    configured anew takes the place of the old one, below whatever factor it had come to; weight decay, betas, eps and
    momentum are replaced. Where nothing changed, the state stays as it was, to the bit.

    Networks that are not in a checkpoint (teacher, guide) are known by fingerprints of their weights, those that are
    by one of their description.
    """

    networks: dict[str, str]
    """Fingerprints by role, from the setup of a fit on."""

    def __init__(self) -> None:
        self._optimizers: list[dict[str, Any]] | None = None
        self.networks = {}
        self._saved: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look at the networks, as long as they are whole and on the CPU."""
        if stage == "fit":
            self.networks = on_rank_0(lambda: _networks(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """What the optimisers were configured with, and the fingerprints."""
        return {"optimizers": self._optimizers, "networks": self.networks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare.

        Raises:
            ValueError: for other networks, or another optimiser, than the checkpoint was made with.
        """
        if not self.networks:  # a validation
            return
        before = state_dict["networks"]
        other = [name for name, value in self.networks.items() if before.get(name, value) != value]
        if other:
            raise ValueError(
                f"a run continues with the networks that it began with: {', '.join(other)} differs from that of the "
                "checkpoint in its weights or its description; give the one that it was made with, or begin a new run"
            )
        self._saved = state_dict
        self._compare()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what the optimisers are configured with, before they load anything."""
        self._optimizers = [_configuration(optimizer) for optimizer in trainer.optimizers]
        self._compare()

    def _compare(self) -> None:
        if self._saved is None or self._optimizers is None:
            return
        for before, now in zip(self._saved["optimizers"], self._optimizers, strict=True):
            kinds = [f"{how['class']} of {len(how['groups'])} parameter groups" for how in (before, now)]
            if kinds[0] != kinds[1]:
                raise _refusal(*kinds)
            for old, new in zip(before["groups"], now["groups"], strict=True):
                for name in old.keys() & new.keys():
                    if old[name] != new[name] and not _may_change(name, old[name], new[name]):
                        raise _refusal(*(f"{now['class']} with {name} {value}" for value in (old[name], new[name])))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the optimisers what was configured, now that they have loaded what they remember."""
        if self._saved is None:
            return
        configured = cast("list[dict[str, Any]]", self._optimizers)
        pairs = zip(trainer.optimizers, self._saved["optimizers"], configured, strict=True)
        for optimizer, before, now in pairs:
            for group, old, new in zip(optimizer.param_groups, before["groups"], now["groups"], strict=True):
                _update(group, old, new)
            if before["groups"] != now["groups"]:
                _move_counters(optimizer)
        self._saved = None


def _networks(module: Any) -> dict[str, str]:
    """Fingerprints of the networks by role; the weights count where no checkpoint holds them."""
    found = {}
    for name, network in module.denoisers().items():
        is_saved = not f"{name}.".startswith(module.frozen_prefixes)
        found[name] = fingerprint(network.spec(), None if is_saved else network.state_dict())
    return found


def _configuration(optimizer: Optimizer) -> dict[str, Any]:
    groups = [
        {name: _plain(value) for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    return {"class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", "groups": groups}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _may_change(name: str, old: Any, new: Any) -> bool:
    """Whether an optimiser can go on with another value; from 0 to a number or back it would remember other things."""
    if name in ("lr", "weight_decay", *_SWITCHES):
        return True
    return name in _NUMBERS and bool(old) == bool(new)


def _update(group: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Change a restored parameter group by what was configured otherwise than then."""
    if "initial_lr" in group:  # of a schedule, which begins from there before the next turn, where there still is one
        group["lr"] = group.pop("initial_lr")
    for name in old.keys() & new.keys():
        if old[name] == new[name]:
            continue
        if name == "lr" and group["lr"] != old["lr"] and old["lr"]:
            group["lr"] = group["lr"] * (new["lr"] / old["lr"])
        else:
            group[name] = tuple(new[name]) if isinstance(new[name], list) else new[name]


def _move_counters(optimizer: Optimizer) -> None:
    """Bring the counters of steps to where a fused optimiser reads them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            step = optimizer.state[parameter].get("step") if parameter in optimizer.state else None
            if group.get("fused") and isinstance(step, torch.Tensor):
                optimizer.state[parameter]["step"] = step.to(parameter.device)


def _refusal(before: str, now: str) -> ValueError:
    return ValueError(
        f"an optimiser cannot go on from the memory of another one: expected {before}, got {now}; leave it as it was, "
        "or begin a new run in another folder (a distillation by --model.student CHECKPOINT from this one's weights)"
    )
