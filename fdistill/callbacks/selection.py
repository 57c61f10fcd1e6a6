"""Acting on a measured metric: keep the best checkpoint by it, or stop when it no longer improves.

Lightning's own early stopping looks at the end of validations and epochs, of which the endless training stream has none,
and its checkpoints are due every so many steps whether or not the metric is new. These look when it was measured.
"""

import math
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fdistill.modules import GenerativeModule


class BestCheckpoint(ModelCheckpoint):
    """Saves checkpoints/best.ckpt whenever a newly measured metric is the best so far."""

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min", filename: str = "best") -> None:
        """Args:
        monitor: name of a metric that a callback measures, e.g. metric/frechet_distance.
        mode: whether smaller or larger is better.
        filename: without .ckpt.
        """
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=1,
            every_n_train_steps=1,
            save_on_exception=False,
            enable_version_counter=False,
        )
        self._seen = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GenerativeModule, *args: object) -> None:
        """Save a new best; Lightning calls checkpoints after all other callbacks."""
        turn, value = pl_module.measured.get(self.monitor, (0, math.nan))
        if turn > self._seen:
            self._seen = turn
            if math.isfinite(value):
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: GenerativeModule) -> None:
        """Say so where there was nothing to choose by."""
        _warn_if_never_measured(self.monitor, pl_module, "no best checkpoint was saved")

    @property
    def state_key(self) -> str:
        """Its own key: a run may have other ModelCheckpoints."""
        return f"BestCheckpoint{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}, 'filename': {self.filename!r}}}"

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["seen"]
        super().load_state_dict(state_dict)


class StopEarly(L.Callback):
    """Stops the run when a metric has not improved for `patience` measurements, on all ranks at once."""

    def __init__(
        self, monitor: str, patience: int = 5, mode: Literal["min", "max"] = "min", min_delta: float = 0.0
    ) -> None:
        """Args:
        monitor: name of a metric that a callback measures, e.g. metric/frechet_distance.
        patience: measurements without improvement, >= 1.
        mode: whether smaller or larger is better.
        min_delta: least change that counts as improvement, >= 0.
        """
        if patience < 1 or min_delta < 0 or mode not in ("min", "max"):
            raise ValueError(
                f"StopEarly needs patience >= 1, min_delta >= 0 and mode min or max: got {patience}, {min_delta}, {mode}"
            )
        self.monitor, self.patience, self.mode, self.min_delta = monitor, patience, mode, min_delta
        self.best, self.best_turn, self.waited = math.nan, 0, 0
        self._seen = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GenerativeModule, *args: object) -> None:
        """Look at a new measurement."""
        turn, value = pl_module.measured.get(self.monitor, (0, math.nan))
        if turn <= self._seen:
            return
        self._seen = turn
        if self._improves(value):
            self.best, self.best_turn, self.waited = value, turn, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            rank_zero_info(
                f"StopEarly: {self.monitor} was best at turn {self.best_turn} ({self.best:.4g}) and has not improved in "
                f"{self.waited} measurements; the run stops at turn {trainer.global_step}"
            )
            trainer.should_stop = True

    def _improves(self, value: float) -> bool:
        gain = self.best - value if self.mode == "min" else value - self.best
        return math.isfinite(value) and (math.isnan(self.best) or gain > self.min_delta)

    def on_train_end(self, trainer: L.Trainer, pl_module: GenerativeModule) -> None:
        """Say so where there was nothing to stop by."""
        _warn_if_never_measured(self.monitor, pl_module, "StopEarly had nothing to look at")

    @property
    def state_key(self) -> str:
        """Its own key: a run may watch several metrics."""
        return f"StopEarly{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_turn": self.best_turn, "waited": self.waited, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_turn, self.waited = (state_dict[name] for name in ("best", "best_turn", "waited"))
        self._seen = state_dict["seen"]


def _warn_if_never_measured(monitor: str, pl_module: GenerativeModule, so: str) -> None:
    if monitor not in pl_module.measured:
        known = ", ".join(sorted(pl_module.measured)) or "nothing"
        rank_zero_warn(
            f"{monitor} was never measured, so {so}: this run measured {known}; correct monitor, or add the callback "
            "that measures it (DiversityCallback, StudentDistance)"
        )
