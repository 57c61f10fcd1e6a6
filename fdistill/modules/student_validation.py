"""Validation, test and prediction of a student: its average's samples beside as many held-out ones."""

import torch
from torch import Tensor

from fdistill.data import Batch
from fdistill.distributed import gather_rows
from fdistill.metrics import frechet_distance
from fdistill.modules.base import GenerativeModule
from fdistill.random_streams import VALIDATION, generator_for


class StudentValidation(GenerativeModule):
    """The loops beside training; a Frechet distance of pixels, without any feature network."""

    def on_validation_epoch_start(self) -> None:
        self._validation: list[tuple[Tensor, Tensor]] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """As many EMA student samples as held-out ones, with their labels."""
        self._validation.append((self.predict_step(batch, batch_idx), batch.x.cpu()))

    def on_validation_epoch_end(self) -> None:
        generated, real = (gather_rows(torch.cat(parts).flatten(1)) for parts in zip(*self._validation, strict=True))
        distance = frechet_distance(generated, real).float()
        self.log("validation/pixel_frechet_distance", distance, prog_bar=True, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its labels."""
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        model = self.generative_model()
        return model.sample(model.latents(len(batch.x), generator), batch.labels)
