"""Tensors that lie in parts on the ranks, in a folder beside the checkpoint: each rank writes and reads its own parts.

The folder is of torch.distributed.checkpoint, in safetensors files, which execute nothing. In the checkpoint a tensor
without numbers (torch's meta device) stands in place of each.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.core.atomic_files import of_other_writings
from fdistill.core.distributed import gather_objects, on_rank_0, patient, rank, world_size
from fdistill.core.weight_files import CheckpointError

SHARDS = "shards"
"""Key of a checkpoint that has such a folder: its token, and the SHA-256 of each file."""
FILE_BYTES = 64 * 2**20
"""Of one rank in one file, about; a single tensor may have more."""


def write_shards(checkpoint: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """A checkpoint in whose place of sharded tensors are their shapes; the numbers are in a folder beside `path`.

    Every rank calls it with its parts. The folder has a name of its own, so that the checkpoint that is there now keeps
    its own until `drop_shards`.

    Raises:
        CheckpointError: on every rank, where one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp

    parts: dict[str, Tensor] = {}

    def take(name: str, value: Tensor) -> Tensor:
        if not hasattr(value, "full_tensor"):
            return value
        parts[name] = value.detach()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    checkpoint = _mapped(checkpoint, take)
    if not parts:
        return checkpoint
    token = on_rank_0(lambda: uuid.uuid4().hex[:12])
    folder = _folder(path, token)
    try:
        with patient():
            writer = dcp.HuggingFaceStorageWriter(str(folder), _in_files(parts), save_distributed=True)
            dcp.save(parts, storage_writer=writer)
            files = sorted(file.name for file in folder.glob("*.safetensors"))
            mine = {name: _digest(folder / name) for name in files[rank() :: world_size()]}
            digests = {name: digest for part in gather_objects(mine) for name, digest in part.items()}
    except dcp.CheckpointException as error:
        shutil.rmtree(folder, ignore_errors=True)
        reasons = "; ".join(f"rank {number}: {fault[0]}" for number, fault in error.failures.items())
        raise CheckpointError(f"cannot write {folder}: {reasons}; the checkpoint before it is as it was") from error
    return {**checkpoint, SHARDS: {"token": token, "sha256": digests}}


def drop_shards(path: Path | str, keep: str | None = None) -> None:
    """Remove the folders beside a checkpoint that are not of it; one process calls it when the checkpoint is written.

    Args:
        path: of the checkpoint.
        keep: the token of its own folder; None for a checkpoint without one, or for one that is removed.
    """
    for folder in of_other_writings(path, "shards", keep):
        shutil.rmtree(folder, ignore_errors=True)


class Shards:
    """The folder beside a checkpoint that was read."""

    def __init__(self, checkpoint: Mapping[str, Any], path: Path | str) -> None:
        """Checks the files, in a job each rank its share of them.

        Args:
            checkpoint: with the key `SHARDS`.
            path: where it lies; a link is followed.

        Raises:
            CheckpointError: on every rank, where a file is missing, or is not the one that was written.
        """
        facts = checkpoint[SHARDS]
        self._folder = _folder(Path(path).resolve(), facts["token"])
        mine = sorted(facts["sha256"].items())[rank() :: world_size()]
        with patient():
            faults = [fault for part in gather_objects(self._faults(mine)) for fault in part]
        if faults:
            raise CheckpointError(f"{faults[0]}; take another checkpoint, or copy its folder beside it")

    def _faults(self, files: list[tuple[str, str]]) -> list[str]:
        found = {name: self._folder / name for name, _ in files}
        missing = [f"{path} is missing" for path in found.values() if not path.is_file()]
        if missing:
            return missing
        return [f"{found[name]} is damaged (SHA-256)" for name, digest in files if _digest(found[name]) != digest]

    def read_into(self, tensors: dict[str, Tensor], alone: bool) -> None:
        """Fill tensors by their names, in place: whole ones, or this rank's parts of sharded ones.

        Args:
            tensors: by the keys of the checkpoint that lead to each, with "/" between them.
            alone: whether this rank reads without the others; else every rank calls it.
        """
        import torch.distributed.checkpoint as dcp

        reader = dcp.HuggingFaceStorageReader(str(self._folder))
        if tensors:
            with torch.no_grad(), patient():
                dcp.load(tensors, storage_reader=reader, no_dist=alone)

    def whole(self, checkpoint: dict[str, Any], under: str = "") -> dict[str, Any]:
        """The checkpoint with the numbers of all tensors whose names begin so, on the CPU; asks no other rank."""
        tensors: dict[str, Tensor] = {}

        def make(name: str, value: Tensor) -> Tensor:
            if not value.is_meta or not name.startswith(under):
                return value
            tensors[name] = torch.empty(value.shape, dtype=value.dtype)
            return tensors[name]

        filled = _mapped({key: value for key, value in checkpoint.items() if key != SHARDS}, make)
        self.read_into(tensors, alone=True)
        return filled


def put_tensors(checkpoint: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The checkpoint with these tensors at their names in place of what is there."""
    return _mapped(checkpoint, lambda name, value: tensors.get(name, value))


def _mapped(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    """Nested dictionaries and lists with each tensor replaced by what `change` makes of its name and value."""
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change, f"{name}/{key}".lstrip("/")) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(inner, change, f"{name}/{index}") for index, inner in enumerate(value))
    return value


def _in_files(parts: Mapping[str, Tensor]) -> dict[str, int]:
    """Number from 1 of the file that a rank writes its part of each tensor to: a file is in memory twice meanwhile."""
    before, numbers = 0, {}
    for name, value in parts.items():
        numbers[name] = 1 + before // (FILE_BYTES * world_size())
        before += value.numel() * value.element_size()
    return numbers


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(path: Path | str, token: str) -> Path:
    path = Path(path)
    return path.with_name(f"{path.stem}.{token}.shards")
