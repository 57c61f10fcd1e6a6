"""Acting on a measured metric: keep the best checkpoint by it, or stop when it no longer improves.

Lightning's own early stopping looks at the end of validations and epochs, of which the endless training stream has
none, counts a patience that noise resets, and its checkpoints are due every so many steps whether or not the metric is
new. These look when it is measured.
"""

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fdistill.evaluation.stop_rule import LEAST_WINDOW, LEAST_WINDOWS, why_stop
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
    """Stops the run when a metric becomes worse or no longer better, on all ranks at once; needs no length of the run.

    `fdistill.evaluation.stop_rule` decides, on all measurements of the run. It decides nothing before the first
    4 `window` of them, so measure often: at 1/60 of the turns that you would allow, say.

    A run that stops ends as one that reaches max_steps: last.ckpt, status 0. Where it is continued, it goes on to its
    next measurement and decides again; leave StopEarly out, or widen the window, to train on.
    """

    def __init__(
        self, monitor: str = "metric/pixel_frechet_distance", mode: Literal["min", "max"] = "min", window: int = 5
    ) -> None:
        """Args:
        monitor: name of a metric that a callback measures.
        mode: whether smaller or larger is better.
        window: measurements that are compared with as many others, >= 5; more tell smaller changes, later.
        """
        _check_mode("StopEarly", mode)
        if window < LEAST_WINDOW:
            raise ValueError(f"StopEarly compares windows of at least {LEAST_WINDOW} measurements: got window {window}")
        super().__init__()
        self.monitor, self.mode, self.window = monitor, mode, window
        self.turns: list[int] = []
        self.values: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where a run continues that had been stopped."""
        why = self._why()
        if why is not None:
            rank_zero_info(
                f"StopEarly: {self.monitor} had stopped this run: {why}. It goes on to the next measurement and "
                "decides again; leave StopEarly out of trainer.callbacks to train on"
            )

    def on_value(self, trainer: L.Trainer, value: float) -> None:
        """Stop or go on."""
        self.turns.append(trainer.global_step)
        self.values.append(value)
        why = self._why()
        if why is not None:
            rank_zero_info(f"StopEarly: {self.monitor} {self._best()}; {why}; the run stops at turn {self.turns[-1]}")
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where there was too little to decide on."""
        super().on_train_end(trainer, pl_module)
        least = LEAST_WINDOWS * self.window
        if 0 < len(self.values) < least:
            rank_zero_warn(
                f"StopEarly did nothing: expected at least {least} measurements of {self.monitor}, got "
                f"{len(self.values)}; measure more often"
            )

    def _why(self) -> str | None:
        return why_stop(self.values, self.window, self.mode == "min")

    def _best(self) -> str:
        finite = [(value, turn) for value, turn in zip(self.values, self.turns, strict=True) if math.isfinite(value)]
        if not finite:
            return "was never finite"
        value, turn = min(finite) if self.mode == "min" else max(finite)
        return f"was best at turn {turn} ({value:.4g})"

    @property
    def state_key(self) -> str:
        """Its own key: a run may watch several metrics."""
        return f"StopEarly{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """All that it has seen."""
        return {"turns": list(self.turns), "values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, with the window of now."""
        self.turns, self.values = list(state_dict["turns"]), list(state_dict["values"])


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
