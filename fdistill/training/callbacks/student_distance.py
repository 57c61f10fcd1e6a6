"""A cheap distance to the training data while a generator trains, to keep the best checkpoint by."""

from typing import Any

import lightning.pytorch as L

from fdistill.evaluation.metrics import PixelMoments, pixel_frechet_distance
from fdistill.evaluation.metrics.blocks import ROWS
from fdistill.evaluation.metrics.frechet_distance import Moments
from fdistill.training.callbacks.measured import check_no_prompts, in_run_precision, publish
from fdistill.training.run_parts import data_of, generative


class StudentDistance(L.Callback):
    """Logs metric/pixel_frechet_distance: EMA samples against the training split, on pixel values.

    Of samples of more than 256 values it is that of 256 random projections, see
    `fdistill.evaluation.metrics.pixel_distance`; the real side is read once a run.

    It uses neither the held-out split nor the features of the evaluation report, so that a checkpoint may be chosen
    by it. Every rank computes the same number from the same latents, so that no rank has to wait.
    """

    def __init__(self, every_n_turns: int = 100, num_samples: int = 1000, seed: int = 1) -> None:
        """Args:
        every_n_turns: between two measurements.
        num_samples: generated ones, at least 2.
        seed: of the latents; labels are those of the training split.
        """
        if every_n_turns < 1 or num_samples < 2:
            raise ValueError(
                f"StudentDistance needs every_n_turns >= 1 and num_samples >= 2: got {every_n_turns}, {num_samples}"
            )
        self.every_n_turns, self.num_samples, self.seed = every_n_turns, num_samples, seed
        self._real: Moments | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError where there are no training images to compare with, or the generator takes prompts."""
        check_no_prompts(self, generative(pl_module))
        if not getattr(data_of(trainer), "has_real", True):
            raise ValueError(
                f"StudentDistance compares with training images: {type(data_of(trainer)).__name__} has none; "
                "leave it out of trainer.callbacks, with what monitors it, or give real data"
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Measure on schedule."""
        module = generative(pl_module)
        if trainer.global_step % self.every_n_turns:
            return
        model, real = in_run_precision(trainer, module.generative_model()), data_of(trainer).train_samples
        if self._real is None:
            moments = PixelMoments(real.sample_shape)
            for batch in real.batches(ROWS):
                moments.add(batch.x)
            self._real = moments.of_this_rank()
        labels = real.labels.repeat(-(-self.num_samples // len(real)))[: self.num_samples]
        generated = PixelMoments(real.sample_shape)
        generated.add(model.sample(model.noise(self.num_samples, self.seed), labels))
        distance = pixel_frechet_distance(generated.of_this_rank(), self._real, real.sample_shape)
        publish(trainer, module, {"metric/pixel_frechet_distance": distance})
