"""Validation, test and prediction of a student: its average's samples beside as many held-out ones."""

from typing import Any

from torch import Tensor

from fdistill.core.random import VALIDATION, generator_for
from fdistill.data import Batch
from fdistill.evaluation.metrics.frechet_distance import Moments
from fdistill.evaluation.metrics.pixel_distance import PixelMoments, pixel_frechet_distance
from fdistill.training.base import GenerativeModule


class StudentValidation(GenerativeModule):
    """The loops beside training; a Frechet distance of pixels, without any feature network.

    Both sides are moments on the module's device that add over batches and ranks: memory does not grow with the
    held-out split. The real side is computed once for a data module and a number of batches.
    """

    _real: tuple[Any, Moments] | None = None  # what it is of, and the moments

    def on_validation_epoch_start(self) -> None:
        shape = self.generative_model().sample_shape
        self._sides = PixelMoments(shape, self.device), PixelMoments(shape, self.device)
        self._knows_real = self._real is not None and self._real[0] == self._validated()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """As many EMA student samples as held-out ones, with their labels."""
        generated, real = self._sides
        generated.add(self.predict_step(batch, batch_idx))
        if not self._knows_real:
            real.add(batch.x)

    def on_validation_epoch_end(self) -> None:
        generated, real = self._sides
        if not self._knows_real or self._real is None:
            self._real = self._validated(), real.total()
        distance = pixel_frechet_distance(generated.total(), self._real[1], generated.sample_shape)
        self.log("validation/pixel_frechet_distance", distance.float().to(self.device), prog_bar=True, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its labels."""
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        model = self.generative_model()
        return model.sample(model.latents(len(batch.x), generator), batch.labels)

    def _validated(self) -> tuple[Any, tuple[int | float, ...]]:
        """What the real side is of: the data, and how many batches of it."""
        run = self.trainer
        evaluated = run.num_test_batches if run.testing else run.num_val_batches
        batches = run.num_sanity_val_batches if run.sanity_checking else evaluated
        return getattr(run, "datamodule", None), tuple(batches)
