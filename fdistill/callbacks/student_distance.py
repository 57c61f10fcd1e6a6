"""A cheap distance to the training data while a generator trains, to keep the best checkpoint by."""

import lightning.pytorch as L

from fdistill.callbacks.measured import publish
from fdistill.metrics import frechet_distance
from fdistill.modules import GenerativeModule


class StudentDistance(L.Callback):
    """Logs metric/pixel_frechet_distance: EMA samples against the training split, on flattened pixel values.

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

    def setup(self, trainer: L.Trainer, pl_module: GenerativeModule, stage: str) -> None:
        """Raises ValueError where there are no training images to compare with."""
        if not getattr(trainer.datamodule, "has_real", True):
            raise ValueError(
                f"StudentDistance compares with training images: {type(trainer.datamodule).__name__} has none; "
                "leave it out of trainer.callbacks, with what monitors it, or give real data"
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GenerativeModule, *args: object) -> None:
        """Measure on schedule."""
        if trainer.global_step % self.every_n_turns:
            return
        model, real = pl_module.generative_model(), trainer.datamodule.train_samples
        labels = real.labels.repeat(-(-self.num_samples // len(real.labels)))[: self.num_samples]
        samples = model.sample(model.noise(self.num_samples, self.seed), labels)
        distance = frechet_distance(samples.flatten(1), real.copied().x.flatten(1))
        publish(trainer, pl_module, {"metric/pixel_frechet_distance": distance})
