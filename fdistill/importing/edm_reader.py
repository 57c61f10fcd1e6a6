"""The pickles of EDM and EDM2 (network-snapshot-*.pkl) as data: no source text and no call in them is executed."""

import mmap
from pathlib import Path
from typing import Any

from torch import Tensor

from fdistill.importing.edm_machine import Refused, run
from fdistill.importing.edm_names import Inert, Names
from fdistill.weight_files import CheckpointError


def read_snapshot(path: Path | str) -> dict[str, Any]:
    """The dictionary that a snapshot holds: its networks are `Inert`, the rest plain values and tensors on the CPU.

    Args:
        path: a .pkl file that EDM or EDM2 wrote; it holds "ema" and, with EDM2, "encoder".

    Raises:
        CheckpointError: if the file is missing, truncated, no such pickle, or names anything that would have to be
            imported or called.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: expected a .pkl snapshot of EDM or EDM2; check the path")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            snapshot = run(content, Names(len(content)))
    except Refused as error:
        raise CheckpointError(
            f"{path}: a snapshot of EDM holds weights, plain values and EDM's own classes, none of them executed: got "
            f"{error}; take the published file"
        ) from error
    except (ValueError, TypeError, LookupError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path} is truncated or no pickle that EDM wrote ({reason[0][:200]}): download it again"
        ) from error
    if type(snapshot) is not dict or not isinstance(snapshot.get("ema"), Inert):
        raise CheckpointError(f"{path} is no snapshot of EDM: expected a dictionary with a network under 'ema'")
    return snapshot


def weights_of(module: Inert) -> dict[str, Tensor]:
    """The flat state dict of a network, bit for bit: parameters and persistent buffers under their dotted names.

    Args:
        module: an inert torch.nn.Module.

    Raises:
        CheckpointError: where the tree of modules is none.
    """
    weights: dict[str, Tensor] = {}
    waiting, seen = [("", module)], set()
    while waiting:
        prefix, current = waiting.pop()
        if not isinstance(current, Inert) or id(current) in seen:  # a shared module could double at every level
            raise CheckpointError(f"the network of the snapshot is no tree of modules: see {prefix or 'its root'!r}")
        seen.add(id(current))
        hidden = _table(current, "_non_persistent_buffers_set", set)
        tensors = _table(current, "_parameters", dict) | {
            name: value for name, value in _table(current, "_buffers", dict).items() if name not in hidden
        }
        weights |= {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
        below = _table(current, "_modules", dict)
        waiting += [(f"{prefix}{name}.", value) for name, value in below.items() if value is not None]
    return weights


def _table(module: Inert, name: str, kind: type) -> Any:
    value = module.state.get(name, kind())
    if type(value) is not kind:
        raise CheckpointError(f"{name} of a {module.name} is a {kind.__name__}: got a {type(value).__name__}")
    return value
