"""Power-function averages of the generator while it trains, so that the length of its average is chosen afterwards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn

from fdistill.core.distributed import on_rank_0
from fdistill.models.denoiser import Denoiser
from fdistill.training import DistillationModule, GenerativeModule, TeacherModule
from fdistill.training.averaging.power_ema import PowerEMA, checked_lengths
from fdistill.training.averaging.snapshots import FOLDER, Storage, drop_later, write_snapshot
from fdistill.training.run_parts import generative


class PowerAverages(L.Callback):
    """Tracks averages of the raw generator's weights and writes snapshots of them into averages/ of the run folder.

    It follows a student, or a teacher that trains, and moves after the generator's own updates only. `fdistill average`
    then makes the average of any length of the snapshots. The run's EMA is not touched. Each average is a float32 copy
    of the network, or of this rank's part of it, on its device, and lies whole in every checkpoint: a resumed run is
    bit-equal to an uninterrupted one. A snapshot takes lengths x parameters x 4 bytes (2 as float16): 32 of two lengths
    take 256 bytes a parameter.

    A run that starts or continues removes the snapshots of later updates than its own: they are of a branch that is
    left. Rank 0 writes.
    """

    def __init__(
        self,
        lengths: Sequence[float] = (0.05, 0.10),
        snapshots: int = 32,
        every_n_updates: int | None = None,
        storage: Storage = "float32",
    ) -> None:
        """Args:
        lengths: sigma_rel of the averages that are tracked, in (0, 12^-1/2].
        snapshots: over the run's max_steps at equal distances, where every_n_updates is not given.
        every_n_updates: generator updates (teacher training: turns) between two snapshots; the end has one too.
        storage: float32, or float16 for half the disk, which rounds each weight by up to 1 in 2,048.
        """
        if snapshots < 1 or (every_n_updates is not None and every_n_updates < 1):
            raise ValueError(
                f"PowerAverages needs snapshots >= 1 and every_n_updates >= 1: got {snapshots} and {every_n_updates}"
            )
        if storage not in ("float32", "float16"):
            raise ValueError(f"PowerAverages stores float32 or float16: got {storage}")
        self.lengths, self.snapshots, self.every_n_updates = checked_lengths(lengths), snapshots, every_n_updates
        self.storage: Storage = storage
        self._averages: Any = None  # a PowerEMA from the start of training on
        self._restored: dict[str, Any] | None = None
        self._before = 0  # generator updates that were done when tracking began
        self._every = self._written = 0
        self._folder = Path()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError where a run without an end does not say how often snapshots are taken."""
        if stage == "fit" and self.every_n_updates is None and trainer.max_steps < 1:
            raise ValueError(
                f"PowerAverages spreads {self.snapshots} snapshots over max_steps: this run has none; give "
                "every_n_updates, or --trainer.max_steps"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, or go on from a checkpoint, and remove the snapshots of what is trained again."""
        # log_dir is broadcast from rank 0, so every rank has to ask for it
        module = generative(pl_module)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        planned = module.updates_after(max(trainer.max_steps, 0))
        self._every = self.every_n_updates or max(math.ceil(planned / self.snapshots), 1)
        self._averages, self._before = PowerEMA(generator_of(module), self.lengths), module.updates
        if self._restored is not None:
            self._before = self._restored["before"]
            self._averages.restore(self._restored["averages"], self._restored["updates"])
        elif self._before:
            rank_zero_warn(
                f"PowerAverages begins at update {self._before:,}: its lengths are shares of the updates from there on"
            )
        self._restored, self._written = None, self._averages.updates
        on_rank_0(lambda: drop_later(self._folder, self._written))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Follow the generator where it moved; write on schedule."""
        module = generative(pl_module)
        if module.updates - self._before == self._averages.updates:
            return
        self._averages.update(generator_of(module))
        if self._averages.updates % self._every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the end, which every reconstruction needs."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        updates = self._averages.updates
        if updates > self._written:
            self._written = updates
            named = self._averages.named()
            on_rank_0(lambda: write_snapshot(self._folder, named, updates, self.storage))

    def state_dict(self) -> dict[str, Any]:
        """The averages, on the CPU."""
        if self._averages is None:
            return self._restored or {}
        return {
            "lengths": list(self.lengths),
            "averages": self._averages.wholes(),
            "updates": self._averages.updates,
            "before": self._before,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue.

        Raises:
            ValueError: where the checkpoint has averages of other lengths.
        """
        if tuple(state_dict["lengths"]) != self.lengths:
            raise ValueError(
                f"this run tracks averages of lengths {state_dict['lengths']}: got {list(self.lengths)}; give "
                "PowerAverages the run's own"
            )
        self._restored = state_dict


def generator_of(module: GenerativeModule) -> Denoiser:
    """The raw network that a run trains to generate: the student, or the denoiser of a teacher."""
    return module.student if isinstance(module, DistillationModule) else cast(TeacherModule, module).denoiser
