"""The largest batch of a run that fits into the memory of this machine's device.

    python tools/largest_batch.py --config configs/trainer.yaml --config my_run.yaml [other arguments of fdistill fit]

Builds the run again and again with another --data.batch_size, and takes one whole cycle of turns and one more (an
optimiser has its state after its first step). Doubles from --first until the device is out of memory, then halves the
gap until it is below a sixteenth. Nothing is logged or saved, and callbacks are left out: pictures and metrics need
memory of their own. Several devices: run it on one, the others need the same. Lightning's BatchSizeFinder is not used:
it stops at the length of the data, which an endless stream does not care about, and takes that batch untried.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence

import torch

from fdistill.cli.fit import run_trainer
from fdistill.training import DistillationModule

MOST = 1 << 16  # where nothing ever runs out, as on a CPU with much memory


def largest(fits: Callable[[int], bool], first: int = 1, most: int = MOST) -> int:
    """The largest batch of which `fits` is true, to within a sixteenth; 0 where not even `first` fits."""
    good, bad = 0, first
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    while good and bad <= most and bad - good > max(good // 16, 1):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits(arguments: Sequence[str], batch_size: int) -> bool:
    """Whether a cycle and a turn of this batch run through; every other error is raised."""
    settings = {"data.batch_size": batch_size, "trainer.logger": "false", "trainer.callbacks": "[]"}
    settings |= {"trainer.enable_checkpointing": "false", "trainer.enable_progress_bar": "false"}
    settings |= {"trainer.limit_val_batches": 0}
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings["trainer.default_root_dir"] = folder  # for config.yaml, which every run writes
            cli = run_trainer([*arguments, *(f"--{name}={value}" for name, value in settings.items())], run=False)
            turns = 2
            if isinstance(cli.model, DistillationModule):
                cli.model.turn_schedule = cli.model.turn_schedule._replace(warmup=0)
                turns = cli.model.turn_schedule.cycle + 1
            cli.trainer.fit_loop.epoch_loop.max_steps = turns
            cli.trainer.fit(cli.model, cli.datamodule)
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()  # the modules and their trainer hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--most", type=int, default=MOST)
    options, arguments = parser.parse_known_args()

    def tried(batch_size: int) -> bool:
        works = fits(arguments, batch_size)
        print(f"batch {batch_size}: {'fits' if works else 'out of memory'}", flush=True)
        return works

    found = largest(tried, options.first, options.most)
    print(f"the largest batch that fits: {found} (--data.batch_size {found})" if found else "no batch fits")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
