"""The pickles of EDM and EDM2 (network-snapshot-*.pkl) as data: no source text and no call in them is executed."""

import mmap
from pathlib import Path
from typing import Any

from torch import Tensor

from fdistill.core.weight_files import BUILD_ERRORS, CheckpointError, check_held, file_size, reason, shown
from fdistill.io.importing.edm_machine import Refused, run
from fdistill.io.importing.edm_names import Inert, Names

_MOST, _LONGEST = 100_000, 200  # tensors of a network, characters of a name


def read_snapshot(path: Path | str) -> dict[str, Any]:
    """The dictionary that a snapshot holds: its networks are `Inert`, the rest plain values and tensors on the CPU.

    Args:
        path: a .pkl file that EDM or EDM2 wrote; it holds "ema" and, with EDM2, "encoder".

    Raises:
        CheckpointError: if the file is missing, truncated, no such pickle, or names anything that would have to be
            imported or called.
    """
    path = Path(path)
    try:
        file_size(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            snapshot = run(content, Names(len(content)))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}: expected a .pkl snapshot of EDM or EDM2; check the path") from error
    except Refused as error:
        raise CheckpointError(
            f"{path}: a snapshot of EDM holds weights, plain values and EDM's own classes, none of them executed: got "
            f"{error}; take the published file"
        ) from error
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(
            f"{path} is truncated or no pickle that EDM wrote ({reason(error)}): download it again"
        ) from error
    if type(snapshot) is not dict or not isinstance(snapshot.get("ema"), Inert):
        raise CheckpointError(f"{path} is no snapshot of EDM: expected a dictionary with a network under 'ema'")
    return snapshot


def weights_of(module: Inert, source: Path | str = "the snapshot") -> dict[str, Tensor]:
    """The flat state dict of a network, bit for bit: parameters and persistent buffers under their dotted names.

    Args:
        module: an inert torch.nn.Module.
        source: for the message.

    Raises:
        CheckpointError: where the tree of modules is none, or larger than the file.
    """
    weights: dict[str, Tensor] = {}
    waiting, seen = [("", module)], set()
    while waiting:
        prefix, current = waiting.pop()
        if not isinstance(current, Inert) or id(current) in seen:  # a shared module could double at every level
            place = shown(prefix) or "its root"
            raise CheckpointError(f"{source}: the network of the snapshot is no tree of modules: see {place}")
        seen.add(id(current))
        hidden = _table(current, "_non_persistent_buffers_set", set, source)
        buffers = _table(current, "_buffers", dict, source)
        tensors = _table(current, "_parameters", dict, source) | {n: v for n, v in buffers.items() if n not in hidden}
        below = _table(current, "_modules", dict, source)
        names = [name for table in (tensors, below) for name in table]
        # a table, or a long name, that many modules share would fill the memory
        if len(weights) + len(waiting) + len(names) > _MOST or any(len(f"{prefix}{n}") > _LONGEST for n in names):
            raise CheckpointError(
                f"{source}: a network has at most {_MOST:,} tensors, of short names: see {shown(prefix)}"
            )
        weights |= {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
        waiting += [(f"{prefix}{name}.", value) for name, value in below.items() if value is not None]
    check_held(weights, source)
    return weights


def _table(module: Inert, name: str, kind: type, source: Path | str) -> Any:
    value = module.state.get(name, kind())
    if type(value) is not kind:
        what = f"{name} of a {shown(module.name)} is a {kind.__name__}"
        raise CheckpointError(f"{source}: {what}: got a {type(value).__name__}")
    return value
