"""The collapse alarm in a run: reads what DiversityCallback measured, says in words what is wrong, and may act."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fdistill.core.distributed import on_rank_0
from fdistill.evaluation.collapse_alarm import WATCHED, CollapseAlarm, Verdict, Watch, bands
from fdistill.evaluation.comparison import TrainingComparison
from fdistill.training import GenerativeModule
from fdistill.training.callbacks.diversity import DiversityCallback
from fdistill.training.callbacks.learning_rate import reduce_rates
from fdistill.training.callbacks.measured import Listener
from fdistill.training.loggers import log_numbers, log_words
from fdistill.training.run_parts import callbacks_of

FIRST_SHARE = 0.25  # of the run, in which a student that has never been healthy is not called collapsed


class CollapseCallback(Listener):
    """Declares a collapse when recall, Vendi ratio, anchored TID or mode coverage leaves its band.

    The bands come from random halves of the reference (`fdistill.evaluation.collapse_alarm`), and from the teacher
    where it is measured and lies outside of them. Logs collapse/alarm (0 or 1), collapse/margin/<metric> (negative
    outside the band) and, in words, collapse/reason.
    """

    def __init__(
        self,
        patience: int = 2,
        action: Literal["warn", "stop", "lower_learning_rate"] = "warn",
        factor: float = 0.5,
        tolerance: dict[str, float] | None = None,
        num_splits: int = 20,
        grace_updates: int | None = None,
    ) -> None:
        """Args:
        patience: measurements in a row that a metric is outside its band.
        action: besides the warning: nothing, stop the run, or multiply every learning rate by `factor` once, beside
            whatever `LearningRate` schedules.
        factor: in (0, 1).
        tolerance: how far from the null a healthy student may be, by metric; replaces the defaults of
            `fdistill.evaluation.collapse_alarm.WATCHED`.
        num_splits: half-splits of the reference behind each band, >= 2.
        grace_updates: student updates before which a student that was never inside all bands is left alone; None for a
            quarter of max_steps.
        """
        unknown = sorted(set(tolerance or {}) - set(WATCHED))
        if unknown or action not in ("warn", "stop", "lower_learning_rate"):
            raise ValueError(
                f"CollapseCallback watches {', '.join(WATCHED)} and may warn, stop or lower_learning_rate: got "
                f"{', '.join(unknown) or action}"
            )
        if patience < 1 or num_splits < 2 or not 0 < factor < 1:
            raise ValueError(
                f"CollapseCallback needs patience >= 1, num_splits >= 2 and factor in (0, 1): got {patience}, "
                f"{num_splits}, {factor}"
            )
        self.patience, self.action, self.factor, self.num_splits = patience, action, factor, num_splits
        self.grace_updates = grace_updates
        self.watched = {
            name: Watch(watch.falls, (tolerance or {}).get(name, watch.tolerance), watch.says)
            for name, watch in WATCHED.items()
        }
        self.verdict: Verdict | None = None
        self._alarm: CollapseAlarm | None = None
        self._restored: dict[str, Any] | None = None
        self._seen, self._lowered = 0, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what it reads.

        Raises:
            ValueError: without a DiversityCallback.
        """
        if stage == "fit" and not any(isinstance(callback, DiversityCallback) for callback in callbacks_of(trainer)):
            raise ValueError(
                "CollapseCallback reads what DiversityCallback measures: expected one in callbacks, got none; add it"
            )

    def on_measured(self, trainer: L.Trainer, pl_module: GenerativeModule, numbers: Mapping[str, float]) -> None:
        """Judge a new measurement of DiversityCallback; others are not its business."""
        diversity = next(callback for callback in callbacks_of(trainer) if isinstance(callback, DiversityCallback))
        if diversity.latest is None or diversity.latest[0] == self._seen:
            return
        self._seen, values, missing = diversity.latest
        alarm = self._calibrated(trainer, pl_module, diversity)
        was_on = self.verdict is not None and self.verdict.alarm
        self.verdict = alarm.update(values, self._seen, missing)
        numbers = {f"collapse/margin/{name}": margin for name, margin in self.verdict.margins.items()}
        log_numbers(trainer.loggers, {"collapse/alarm": float(self.verdict.alarm), **numbers}, trainer.global_step)
        if self.verdict.alarm:
            log_words(trainer.loggers, "collapse/reason", self.verdict.reason, trainer.global_step)
            if not was_on:
                rank_zero_warn(f"the student is collapsing: {self.verdict.reason}")
            self._act(trainer)
        elif was_on:
            rank_zero_info("the student is inside all bands of diversity again")

    def _calibrated(
        self, trainer: L.Trainer, pl_module: GenerativeModule, diversity: DiversityCallback
    ) -> CollapseAlarm:
        if self._alarm is None:
            comparison = cast(TrainingComparison, diversity.comparison)  # it has measured
            null, teacher = on_rank_0(
                lambda: (comparison.null(list(self.watched), self.num_splits), diversity.teacher_values())
            )
            grace = self.grace_updates
            if grace is None:
                grace = int(FIRST_SHARE * pl_module.updates_after(max(trainer.max_steps, 0)))
            self._alarm = CollapseAlarm(bands(null, self.watched, teacher), self.patience, grace)
            if self._restored is not None:
                self._alarm.restore(self._restored)
        return self._alarm

    def _act(self, trainer: L.Trainer) -> None:
        if self.action == "stop":
            rank_zero_info("CollapseCallback stops the run")
            trainer.should_stop = True
        elif self.action == "lower_learning_rate" and not self._lowered:
            self._lowered = True
            reduce_rates(trainer, self.factor)
            rank_zero_info(f"CollapseCallback multiplied every learning rate by {self.factor}")

    def state_dict(self) -> dict[str, Any]:
        """What the alarm has seen."""
        alarm = self._restored if self._alarm is None else self._alarm.state()
        return {
            "alarm": alarm,
            "seen": self._seen,
            "lowered": self._lowered,
            "on": bool(self.verdict and self.verdict.alarm),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self._restored, self._seen, self._lowered = state_dict["alarm"], state_dict["seen"], state_dict["lowered"]
        self.verdict = Verdict(state_dict["on"], {})
