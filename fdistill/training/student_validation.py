"""What a distillation measures at its validation: a Frechet distance of pixels, without any feature network."""

from typing import Any

from torch import Tensor

from fdistill.core.random import VALIDATION, generator_for
from fdistill.data import Batch
from fdistill.evaluation.metrics.frechet_distance import Moments
from fdistill.evaluation.metrics.pixel_distance import PixelMoments, pixel_frechet_distance
from fdistill.training.base import GenerativeModule


class StudentValidation(GenerativeModule):
    """Samples of the student's average beside held-out ones, and both sides' moments."""

    _real_side: tuple[Any, Moments] | None = None  # the held-out data that it is of, and its moments

    def on_validation_epoch_start(self) -> None:
        """Begin the moments of both sides, which add over batches and ranks; those of the same real side are kept."""
        shape = self.generative_model().sample_shape
        self._sides = PixelMoments(shape, self.device), PixelMoments(shape, self.device)
        self._knows_real = self._real_side is not None and self._real_side[0] == self._validated()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """As many EMA student samples as held-out ones, with their conditions."""
        generated, real = self._sides
        generated.add(self.predict_step(batch, batch_idx))
        if not self._knows_real:
            real.add(batch.x)

    def on_validation_epoch_end(self) -> None:
        """Log a Frechet distance of pixels, without any feature network."""
        generated, real = self._sides
        if not self._knows_real or self._real_side is None:
            self._real_side = self._validated(), real.total()
        distance = pixel_frechet_distance(generated.total(), self._real_side[1], generated.sample_shape)
        self.log("validation/pixel_frechet_distance", distance.float().to(self.device), prog_bar=True, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its conditions."""
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        model = self.generative_model()
        return model.sample(model.latents(len(batch.x), generator), batch.condition)

    def _validated(self) -> tuple[Any, tuple[int | float, ...]]:
        """What the real side is of: the data, and how many batches of it."""
        run = self.trainer
        evaluated = run.num_test_batches if run.testing else run.num_val_batches
        batches = run.num_sanity_val_batches if run.sanity_checking else evaluated
        return getattr(run, "datamodule", None), tuple(batches)
