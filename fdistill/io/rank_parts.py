"""What each rank keeps for itself, in a file of its own beside the run's checkpoint: nobody gathers it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fdistill.core.atomic_files import atomic_write, of_other_writings
from fdistill.core.distributed import gather_objects, patient, rank, world_size
from fdistill.core.weight_files import CheckpointError

OWN = "own"
"""Key of a checkpoint: while it is made this rank's tensors by name, after it was read `RankParts`."""
PARTS = "parts"
"""Key of a checkpoint that has files beside it: their token, and a digest of each in the order of the ranks."""


def write_part(checkpoint: dict[str, Any], path: Path | str) -> None:
    """Move this rank's tensors out of a checkpoint that is about to be written, into a file beside it.

    Every rank calls it. The file's name has a token of what all ranks hold, so that the checkpoint that is there now
    keeps its own files until `drop_parts`; a kill in between leaves both. With one process everything stays inside.

    Raises:
        CheckpointError: on every rank, where one of them cannot write.
    """
    own = checkpoint.get(OWN)
    if world_size() == 1:
        return
    checkpoint.pop(OWN, None)
    content = save({name: value.detach().cpu().contiguous() for name, value in (own or {}).items()})
    with patient():
        found = gather_objects((bool(own), hashlib.sha256(content).hexdigest()))
        if not any(filled for filled, _ in found):
            return
        digests = [digest for _, digest in found]
        token, fault = hashlib.sha256("".join(digests).encode()).hexdigest()[:12], None
        try:
            atomic_write(_file(path, token, rank()), content)
        except OSError as error:
            fault = f"rank {rank()}: {error}"
        faults = [text for text in gather_objects(fault) if text]
    if faults:
        raise CheckpointError(f"{faults[0]}; the checkpoint before it is as it was")
    checkpoint[PARTS] = {"token": token, "sha256": digests}


def drop_parts(path: Path | str, keep: str | None = None) -> None:
    """Remove the files beside a checkpoint that are not of it; one process calls it when the checkpoint is written.

    Args:
        path: of the checkpoint.
        keep: the token of its own files; None for a checkpoint without any, or for one that is removed.
    """
    for file in of_other_writings(path, r"rank\d+\.safetensors", keep):
        file.unlink(missing_ok=True)


def copy_parts(checkpoint: dict[str, Any], path: Path | str, target: Path | str) -> None:
    """Copy the files beside a checkpoint to where another one will lie that has the same key `PARTS`."""
    facts = checkpoint.get(PARTS, {"token": "", "sha256": []})
    for number in range(len(facts["sha256"])):
        content = _file(Path(path).resolve(), facts["token"], number).read_bytes()
        atomic_write(_file(target, facts["token"], number), content)


class RankParts:
    """What the ranks of the run that wrote a checkpoint kept for themselves.

    Attributes:
        ranks: how many there were.
    """

    def __init__(self, checkpoint: Mapping[str, Any], path: Path | str) -> None:
        """Reads nothing yet.

        Args:
            checkpoint: what was read.
            path: where it lies; a link is followed.
        """
        self._facts, self._held = checkpoint.get(PARTS), checkpoint.get(OWN) or {}
        self._path, self._checked = Path(path).resolve(), set[int]()
        self.ranks = 1 if self._facts is None else len(self._facts["sha256"])

    def of(self, number: int, under: str) -> dict[str, Tensor]:
        """The tensors of one rank whose names begin so, without that beginning; on the CPU.

        Raises:
            CheckpointError: where its file is missing, or is not the one that was written.
        """
        if self._facts is None:
            return {name.removeprefix(under): v for name, v in self._held.items() if name.startswith(under)}
        file = _file(self._path, self._facts["token"], number)
        if number not in self._checked:
            self._check(file, number)
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(under)]  # noqa: SIM118, it is no dictionary
            return {name.removeprefix(under): tensors.get_tensor(name) for name in names}

    def _check(self, file: Path, number: int) -> None:
        assert self._facts is not None
        if not file.is_file():
            raise CheckpointError(
                f"{self._path} has a part of each of {self.ranks} ranks beside it: expected {file.name}, got none; "
                "copy it there, or take another checkpoint"
            )
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != self._facts["sha256"][number]:
                raise CheckpointError(f"{file} is damaged, its SHA-256 is not the one written: take another checkpoint")
        self._checked.add(number)


def parts_of(checkpoint: Mapping[str, Any]) -> RankParts:
    """The parts of a checkpoint that a run reads.

    Raises:
        CheckpointError: where something else than `fdistill.training.checkpoint_io` read it, which does not find them.
    """
    found = checkpoint.get(OWN)
    if isinstance(found, RankParts):
        return found
    if PARTS in checkpoint:
        raise CheckpointError("ranks keep parts beside this checkpoint: expected SafeCheckpointIO as checkpoint_io")
    return RankParts(checkpoint, "")


def _file(path: Path | str, token: str, number: int) -> Path:
    path = Path(path)
    return path.with_name(f"{path.stem}.{token}.rank{number}.safetensors")
