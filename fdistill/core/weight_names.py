"""Names of tensors in files: what wrappers put before them, and what diffusers called them before."""

from collections.abc import Iterable, Mapping
from typing import Any

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15
_WRAPPERS = {  # torch.compile, FSDP, and checkpointing of activations: anywhere in a name
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
}
HOLDERS = frozenset(  # DistributedDataParallel, and what trainers call a network in the dictionaries that they save
    {*("module", "model", "net", "unet", "state_dict", "denoiser", "model_state_dict", "params")}
    | {*("ema", "ema_model", "model_ema", "ema_state_dict", "average")}
)
"""First parts of names, or keys of a dictionary, that say whose tensors follow and are no part of a network of ours."""


def todays_name(name: str) -> str:
    """The name that attention layers of before diffusers 0.15 have today."""
    return ".".join(_OLD_ATTENTION.get(part, part) for part in name.split("."))


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names that a network has by itself.

    Wrappers are taken out of every name, and holders from the beginning of all of them where they share one. Where two
    tensors would get the same name, they are as they were.
    """
    names = {name: [part for part in name.split(".") if part not in _WRAPPERS] for name in weights}
    while (first := {parts[0] for parts in names.values() if len(parts) > 1}) and len(first) == 1 and first < HOLDERS:
        if any(len(parts) == 1 for parts in names.values()):
            break
        names = {name: parts[1:] for name, parts in names.items()}
    plain = {".".join(parts): weights[name] for name, parts in names.items()}
    return plain if len(plain) == len(weights) else dict(weights)


def several_holders(names: Iterable[str]) -> list[str]:
    """The holders at the beginning of the names, where there are more than one: a file of several networks."""
    found = sorted({name.partition(".")[0] for name in names if "." in name} & HOLDERS)
    return found if len(found) > 1 else []
