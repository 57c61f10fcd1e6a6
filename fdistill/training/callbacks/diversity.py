"""Diversity and quality of the EMA generator while it trains, beside its teacher and real data, at equal n."""

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from fdistill.core.distributed import on_rank_0, patient
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.comparison import TrainingComparison, compared_samples
from fdistill.evaluation.features import FeatureCache, FeatureExtractor, default_extractor
from fdistill.evaluation.metrics import FeatureMetric, standard_metrics
from fdistill.evaluation.samples import Samples
from fdistill.training import DistillationModule, GenerativeModule
from fdistill.training.callbacks.measured import check_no_prompts, in_run_precision, publish
from fdistill.training.loggers import log_numbers
from fdistill.training.run_parts import data_of, generative


class DiversityCallback(L.Callback):
    """Logs metric/<name> of the EMA generator, metric_teacher/<name> and metric_floor/<name>.

    Latents, classes and the reference (n training samples) are the same at every measurement. Samples are spread over
    the ranks, their features extracted once; rank 0 computes. The teacher is measured once a run. perf/metrics_share
    is the share of the run's time that all of this took, its preparation included.
    """

    def __init__(
        self,
        every_n_updates: int = 200,
        num_samples: int = 2000,
        extractor: FeatureExtractor | None = None,
        metrics: dict[str, FeatureMetric] | None = None,
        teacher: bool = True,
        seed: int = 0,
        feature_cache: str | None = None,
    ) -> None:
        """Args:
        every_n_updates: student updates (teacher training: turns) between two measurements.
        num_samples: n of every side; at most half of the training split, the other half being the floor.
        extractor: the space to compare in; None for a small classifier of labelled images, else the values.
        metrics: what to measure, by name; None for the standard ones.
        teacher: whether a student's teacher is measured too.
        seed: of latents, reference and extractor.
        feature_cache: folder in which the extractor and the features of real samples are kept for the next start; None
            for what the extractor learned alone, in the user's cache, where `fdistill evaluate` finds it.
        """
        if every_n_updates < 1 or num_samples < 1:
            raise ValueError(f"DiversityCallback needs positive numbers: got {every_n_updates} and {num_samples}")
        self.every_n_updates, self.num_samples, self.seed = every_n_updates, num_samples, seed
        self.extractor, self.metrics, self.measure_teacher = extractor, metrics, teacher
        self.feature_cache = feature_cache
        self.comparison: TrainingComparison | None = None
        self.latest: tuple[int, dict[str, float], list[int]] | None = None
        """Student updates, metrics and missing modes of the last measurement, on every rank."""
        self._teacher_samples: Samples | None = None
        self._constant: dict[str, float] = {}  # of teacher and floor, under their logged names
        self._last = 0
        self._spent = self._before = 0.0
        self._started = time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first turn whether there is enough to compare with.

        Raises:
            ValueError: without one of our data modules, where its training split is too small, or for a generator that
                takes prompts.
        """
        data = getattr(trainer, "datamodule", None)
        if stage != "fit":
            return
        if not isinstance(data, GenerativeDataModule):
            raise ValueError(
                "DiversityCallback compares with the training split of a GenerativeDataModule: expected one as "
                f"datamodule, got {type(data).__name__}; pass it to Trainer.fit(datamodule=...)"
            )
        check_no_prompts(self, generative(pl_module))
        compared_samples(data, self.num_samples)
        if self.feature_cache is not None:
            FeatureCache(self.feature_cache)  # a folder that cannot be made is told now

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Measure on schedule."""
        module = generative(pl_module)
        updates = module.updates
        if updates == self._last or updates % self.every_n_updates:
            return
        began = time.perf_counter()
        self._last = updates
        with torch.no_grad(), patient():  # a rank that finds features on disk has less to do
            values, missing = self._measure(trainer, module)
        self.latest = updates, values, missing
        named = {f"metric/{name}": value for name, value in values.items()}
        publish(trainer, module, named)
        self._spent += time.perf_counter() - began
        log_numbers(trainer.loggers, {**self._constant, "perf/metrics_share": self._share()}, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what it cost."""
        if self._spent:
            share = f"{100 * self._share():.1f}% of the run's {self._seconds():.0f} s"
            rank_zero_info(f"cost: metrics took {self._spent:.1f} s, {share}")

    def _measure(self, trainer: L.Trainer, pl_module: GenerativeModule) -> tuple[dict[str, float], list[int]]:
        ranks = (trainer.global_rank, trainer.world_size)
        comparison = self._prepared(trainer, pl_module)
        samples = comparison.draw(in_run_precision(trainer, pl_module.generative_model()), *ranks)
        compare = self.measure_teacher and self._teacher_samples is None
        if compare and isinstance(pl_module, DistillationModule):
            self._teacher_samples = comparison.draw(in_run_precision(trainer, pl_module.teacher_model()), *ranks)
        return on_rank_0(lambda: self._compute(comparison, samples))

    def _compute(self, comparison: TrainingComparison, samples: Samples) -> tuple[dict[str, float], list[int]]:
        if not self._constant:
            self._constant = {f"metric_floor/{name}": value for name, value in comparison.floor().items()}
            if self._teacher_samples is not None:
                teacher = comparison.measure(self._teacher_samples)
                self._constant |= {f"metric_teacher/{name}": value for name, value in teacher.items()}
        return comparison.measure(samples, self._teacher_samples), comparison.missing_modes(samples)

    def teacher_values(self) -> dict[str, float]:
        """Metrics of the teacher by name, on rank 0 once they are measured; empty without."""
        mine = "metric_teacher/"
        return {name.removeprefix(mine): v for name, v in self._constant.items() if name.startswith(mine)}

    def _prepared(self, trainer: L.Trainer, pl_module: GenerativeModule) -> TrainingComparison:
        if self.comparison is None:
            data = data_of(trainer)
            shown = data.in_pixels(pl_module.device)
            extractor = self.extractor or default_extractor(tuple(shown.sample_shape), data.num_classes)
            extractor.keep_learned() if self.feature_cache is None else extractor.keep_in(self.feature_cache)
            metrics = standard_metrics(data.num_modes) if self.metrics is None else self.metrics
            extractor = extractor.to(pl_module.device)
            self.comparison = TrainingComparison(data, extractor, metrics, self.num_samples, self.seed)
        return self.comparison

    def _seconds(self) -> float:
        """Length of the run, all its continuations together."""
        return self._before + time.perf_counter() - self._started

    def _share(self) -> float:
        return self._spent / self._seconds()

    def state_dict(self) -> dict[str, Any]:
        """The clock, and when it last measured."""
        return {"last": self._last, "spent": self._spent, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self._last, self._spent, self._before = state_dict["last"], state_dict["spent"], state_dict["seconds"]
