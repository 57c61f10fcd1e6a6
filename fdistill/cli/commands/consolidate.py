"""fdistill consolidate: one file of a sharded run's checkpoint."""

from pathlib import Path

from fdistill.cli.commands import UsageError
from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.io.rank_parts import copy_parts
from fdistill.io.shards import SHARDS
from fdistill.training.checkpoint_io import SafeCheckpointIO


def consolidate(checkpoint: str, out: str) -> None:
    """Write a checkpoint of a sharded run, whose tensors lie in a folder beside it, as one file.

    Every command reads such a checkpoint as it is, and a run of any strategy continues from it: one file is to be moved
    or kept. It takes the memory of all tensors.

    Args:
        checkpoint: a sharded run's .ckpt file.
        out: file to write, which must not be there.
    """
    path, target = Path(checkpoint), Path(out)
    if target.exists():
        raise UsageError(f"consolidate overwrites nothing: {target} is there already; name another file")
    if SHARDS not in read_run_checkpoint(path, whole=False):
        raise UsageError(f"{path} has no folder of sharded tensors beside it: it is one file already; copy it")
    whole = read_run_checkpoint(path)
    copy_parts(whole, path, target)
    SafeCheckpointIO().save_checkpoint(whole, target)
    print(f"{target}: one file, of turn {whole['global_step']}")
