"""Acting on a measured metric: keep the best checkpoint by it, or stop when it no longer improves.

Lightning's own early stopping looks at the end of validations and epochs, of which the endless training stream has
none, and its checkpoints are due every so many steps whether or not the metric is new. These look when it is measured.
"""

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from fdistill.training.callbacks.measured import Monitor


class BestCheckpoint(Monitor, ModelCheckpoint):
    """Saves checkpoints/best.ckpt after every turn whose measurement is the best so far, NaN and infinity left out.

    `best_model_score`, `best_model_path` and `best_turn` go into every checkpoint of the run, so that a run that
    continues does not take a worse one for the best.
    """

    monitor: str

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min", filename: str = "best") -> None:
        """Args:
        monitor: name of a metric that a callback measures, e.g. metric/frechet_distance.
        mode: whether smaller or larger is better.
        filename: without .ckpt.
        """
        _check_mode("BestCheckpoint", mode)
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=1,
            every_n_train_steps=1,
            save_on_exception=False,
            enable_version_counter=False,
        )
        self.best_turn = 0
        self._due = False

    def on_value(self, trainer: L.Trainer, value: float) -> None:
        """Decide now, so that every checkpoint of this turn knows."""
        best = math.nan if self.best_model_score is None else float(self.best_model_score)
        if _gain(self.mode, value, best) > 0:
            self.best_model_score, self.best_turn = torch.tensor(value, dtype=torch.float64), trainer.global_step
            self.best_model_path = self.format_checkpoint_name({})
            self._due = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Save when all other callbacks have finished the turn: Lightning calls checkpoints last."""
        if self._due:
            self._due = False
            self._save_checkpoint(trainer, self.best_model_path)

    @property
    def state_key(self) -> str:
        """Its own key: a run may have other ModelCheckpoints."""
        return f"BestCheckpoint{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}, 'filename': {self.filename!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """The best value, its turn and its file."""
        return super().state_dict() | {"best_turn": self.best_turn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, also where the run was moved with its best; one that branches into another folder has none yet."""
        moved = Path(self.dirpath or "", f"{self.filename}.ckpt").is_file()
        super().load_state_dict(state_dict | {"dirpath": self.dirpath} if moved else state_dict)
        self.best_turn = 0 if self.best_model_score is None else state_dict["best_turn"]


class StopEarly(Monitor):
    """Stops the run when a metric has not improved for `patience` measurements, on all ranks at once."""

    def __init__(
        self, monitor: str, patience: int = 5, mode: Literal["min", "max"] = "min", min_delta: float = 0.0
    ) -> None:
        """Args:
        monitor: name of a metric that a callback measures, e.g. metric/frechet_distance.
        patience: measurements without improvement, >= 1; NaN and infinity are none.
        mode: whether smaller or larger is better.
        min_delta: a change must be larger than this to be an improvement, >= 0.
        """
        _check_mode("StopEarly", mode)
        if patience < 1 or not min_delta >= 0:
            raise ValueError(f"StopEarly needs patience >= 1 and min_delta >= 0: got {patience} and {min_delta}")
        super().__init__()
        self.monitor, self.patience, self.mode, self.min_delta = monitor, patience, mode, min_delta
        self.best, self.best_turn, self.waited = math.nan, 0, 0

    def on_value(self, trainer: L.Trainer, value: float) -> None:
        """Wait or stop."""
        if _gain(self.mode, value, self.best) > self.min_delta:
            self.best, self.best_turn, self.waited = value, trainer.global_step, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = f"was best at turn {self.best_turn} ({self.best:.4g})" if self.best_turn else "was never finite"
            rank_zero_info(
                f"StopEarly: {self.monitor} {best} and has not improved in {self.waited} measurements; "
                f"the run stops at turn {trainer.global_step}"
            )
            trainer.should_stop = True

    @property
    def state_key(self) -> str:
        """Its own key: a run may watch several metrics."""
        return f"StopEarly{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"best": self.best, "best_turn": self.best_turn, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue waiting."""
        self.best, self.best_turn, self.waited = (state_dict[name] for name in ("best", "best_turn", "waited"))


def _gain(mode: str, value: float, best: float) -> float:
    """How much better a value is than the best so far: infinitely where there is none, -inf where it is not finite."""
    if not math.isfinite(value):
        return -math.inf
    if math.isnan(best):
        return math.inf
    return best - value if mode == "min" else value - best


def _check_mode(name: str, mode: str) -> None:
    if mode not in ("min", "max"):
        raise ValueError(f"mode of {name} says which value is the best: expected min or max, got {mode}")
