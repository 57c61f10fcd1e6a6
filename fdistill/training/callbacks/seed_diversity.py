"""Whether the seed still changes the student's picture of one class or prompt, beside its teacher, while it trains."""

from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fdistill.core.distributed import gather_rows, patient
from fdistill.data import GenerativeDataModule, InMemorySplit
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.seed_diversity import TOLERANCE, SeedAlarm, SeedProbe, default_spaces
from fdistill.training import DistillationModule
from fdistill.training.callbacks.collapse import FIRST_SHARE
from fdistill.training.callbacks.measured import in_run_precision, publish
from fdistill.training.loggers import log_words
from fdistill.training.run_parts import data_of


class SeedDiversity(L.Callback):
    """Logs seeds/<name> of the EMA student: likeness and Vendi score of several seeds of each of some conditions.

    seeds/vendi_ratio_<space> is the geometric mean over conditions of the student's Vendi score over the teacher's,
    seeds/similarity_<space> the mean cosine of two seeds, seeds/collapsed_share the conditions below their band,
    seeds/alarm 0 or 1; in words, seeds/reason. The bands are of the teacher's own draws (`SeedAlarm`), made once a run.
    Features are prepared on the training split, where there is no real data on the teacher's pictures.
    """

    def __init__(
        self,
        every_n_updates: int = 500,
        num_conditions: int = 32,
        seeds: int = 16,
        teacher_draws: int = 4,
        spaces: dict[str, FeatureExtractor] | None = None,
        patience: int = 2,
        tolerance: float = TOLERANCE,
        grace_updates: int | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        every_n_updates: student updates between two measurements.
        num_conditions: classes or prompts that are looked at, at most.
        seeds: of each, >= 2.
        teacher_draws: of all conditions and seeds, behind the bands, >= 2.
        spaces: feature extractors by name; None for the default features, and patches of images.
        patience: measurements in a row that a condition is outside its band.
        tolerance: share of the teacher's Vendi score that a healthy student may lack.
        grace_updates: student updates before which a student that was never inside all bands is left alone; None for a
            quarter of max_steps.
        seed: of latents and extractors.
        """
        if min(every_n_updates, num_conditions, patience) < 1 or min(seeds, teacher_draws) < 2:
            raise ValueError(
                "SeedDiversity needs positive numbers, and at least 2 seeds and teacher_draws: got "
                f"{every_n_updates}, {num_conditions}, {patience}, {seeds}, {teacher_draws}"
            )
        self.every_n_updates, self.num_conditions, self.seeds = every_n_updates, num_conditions, seeds
        self.teacher_draws, self.spaces, self.patience = teacher_draws, spaces, patience
        self.tolerance, self.grace_updates, self.seed = tolerance, grace_updates, seed
        self.probe: SeedProbe | None = None
        self.alarm: SeedAlarm | None = None
        self._restored: dict[str, Any] | None = None
        self._last, self._on = 0, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first turn whether there is something to look at.

        Raises:
            ValueError: without a teacher, or one of our data modules.
        """
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and not (
            isinstance(data, GenerativeDataModule) and isinstance(pl_module, DistillationModule)
        ):
            raise ValueError(
                "SeedDiversity compares a student with its teacher on conditions of a GenerativeDataModule: got "
                f"{type(pl_module).__name__} and {type(data).__name__}; leave it out, or give both to a distillation"
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Measure on schedule."""
        module = cast(DistillationModule, pl_module)
        updates = module.updates
        if updates == self._last or updates % self.every_n_updates:
            return
        self._last = updates
        ranks = (trainer.global_rank, trainer.world_size)
        with torch.no_grad(), patient():
            probe, alarm = self._prepared(trainer, module)
            student = in_run_precision(trainer, module.generative_model())
            verdict = alarm.update(probe.measure(probe.pictures(student, 0, *ranks), ranks[1]), updates)
        was_on, self._on = self._on, verdict.alarm
        publish(trainer, module, {f"seeds/{name}": value for name, value in verdict.numbers.items()})
        if verdict.alarm:
            log_words(trainer.loggers, "seeds/reason", verdict.reason, trainer.global_step)
            if not was_on:
                rank_zero_warn(verdict.reason)
        elif was_on:
            rank_zero_info("the seed changes the pictures of all conditions again")

    def _prepared(self, trainer: L.Trainer, module: DistillationModule) -> tuple[SeedProbe, SeedAlarm]:
        """Before the first measurement the features are learned, and the teacher is drawn for the bands."""
        if self.probe is not None and self.alarm is not None:
            return self.probe, self.alarm
        data, ranks = data_of(trainer), (trainer.global_rank, trainer.world_size)
        teacher = in_run_precision(trainer, module.teacher_model())
        real = data.in_pixels(module.device).train_samples if data.has_real else None
        num_classes = 0 if real is None else data.num_classes
        shape = teacher.image_shape if real is None else real.sample_shape
        spaces = self.spaces or default_spaces(shape, num_classes)
        for extractor in spaces.values():
            extractor.keep_learned().to(module.device)
        probe = SeedProbe(data.named_conditions(self.num_conditions), spaces, self.seeds, self.seed, data.decoder)
        drawn = [probe.pictures(teacher, 1 + draw, *ranks) for draw in range(self.teacher_draws)]
        if real is None:
            pictures = gather_rows(torch.cat(drawn).to(module.device)).cpu()
            real = InMemorySplit(pictures, torch.zeros(len(pictures), dtype=torch.int64))
        probe.prepare(real, num_classes)
        grace = self.grace_updates
        if grace is None:
            grace = int(FIRST_SHARE * module.updates_after(max(trainer.max_steps, 0)))
        bands = [probe.measure(pictures, ranks[1]) for pictures in drawn]
        alarm = SeedAlarm(bands, probe.names, self.patience, grace, self.tolerance)
        if self._restored is not None:
            alarm.alarm.restore(self._restored)
        self.probe, self.alarm = probe, alarm
        return probe, alarm

    def state_dict(self) -> dict[str, Any]:
        """What the alarm has seen, and when it last measured."""
        alarm = self._restored if self.alarm is None else self.alarm.alarm.state()
        return {"last": self._last, "on": self._on, "alarm": alarm}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self._last, self._on, self._restored = state_dict["last"], state_dict["on"], state_dict["alarm"]
