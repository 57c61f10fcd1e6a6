"""How a run writes and reads its checkpoints: whole or not at all, and nothing that was altered or would execute."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fdistill.core.atomic_files import replace_file
from fdistill.core.weight_files import CheckpointError
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.io.rank_parts import OWN, PARTS, RankParts, drop_parts
from fdistill.io.shards import SHARDS, Shards, drop_shards

_BY_LIGHTNING = "pytorch-lightning_version"  # key of every checkpoint that a trainer saves


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file and renames; reads with weights_only and explains a broken file in one line.

    Lightning's own writes to the system's temporary folder, keeps two copies in memory, and moves the file with a copy
    where that folder is another disk: a kill there leaves half a checkpoint in place of the old one. Nothing is synced,
    and a folder that may not be written to goes unnoticed (lightning 2.6.6, `_atomic_save`).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write it to the disk, then let it take the name.

        Raises:
            CheckpointError: in one line, when it cannot be written; the old file is as it was.
        """
        try:
            with replace_file(path) as file:
                _save(checkpoint, file)
            drop_parts(path, checkpoint.get(PARTS, {}).get("token"))
            drop_shards(path, checkpoint.get(SHARDS, {}).get("token"))
        except OSError as error:
            left = "the one before it is as it was" if Path(path).is_file() else "there is none before it"
            raise CheckpointError(f"{error}; {left}") from error

    def load_checkpoint(self, path: str | Path, *args: Any, whole: bool = True, **kwargs: Any) -> dict[str, Any]:
        """The checkpoint, on the CPU, with what each rank kept beside it (`fdistill.io.rank_parts`).

        Args:
            path: of the file.
            whole: whether sharded tensors are read, all of each; else the checkpoint has `fdistill.io.shards.Shards`.
            args: of Lightning, which are not read.
            kwargs: the same.

        Raises:
            CheckpointError: as of `read_run_checkpoint`, or where it is none of a trainer.
        """
        checkpoint = read_run_checkpoint(path, whole, together=True)
        if _BY_LIGHTNING not in checkpoint:
            raise CheckpointError(
                f"{path} was saved by no trainer of Lightning: expected the checkpoint of a run of fdistill; weights "
                "alone become a model by fdistill import FILE.safetensors TARGET --config FILE.yaml"
            )
        checkpoint[OWN] = RankParts(checkpoint, path)
        if SHARDS in checkpoint:
            checkpoint[SHARDS] = Shards(checkpoint, path)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """With the files that ranks have beside it."""
        super().remove_checkpoint(path)
        drop_parts(path)
        drop_shards(path)


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """torch.save, with the reason of a failed write in place of torch's own remark about it."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
