"""Pictures of the EMA generator while it trains, always from the same latents, above what they should look like."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as L
import torch
from torch import Tensor

from fdistill.core.distributed import on_rank_0
from fdistill.core.random import generator_for
from fdistill.data import GenerativeDataModule, InMemorySplit
from fdistill.evaluation.report.grid import compared_grid_figure, sample_grid_figure
from fdistill.models.condition import Conditioned
from fdistill.models.vae import Decoder
from fdistill.sampling.generator import GenerativeModel
from fdistill.training import DistillationModule
from fdistill.training.callbacks.measured import in_run_precision
from fdistill.training.loggers import log_histogram, log_picture
from fdistill.training.run_parts import data_of, generative

SEARCHED = 50_000  # training samples among which the nearest one is looked for
CHUNK = 1024  # of them at a time


class _Row(NamedTuple):
    samples: Tensor  # [n, ...], latents where the model makes them
    shown: Tensor  # what a picture holds of them


class SampleGrid(L.Callback):
    """Writes samples/<turn>.png into the run folder and logs it as samples/grid.

    One column an image: the student's, the teacher's from the same latents and classes, and the training image nearest
    to the student's. Student and teacher start from the latents at their own noise levels, and each further step of a
    student has noise of its own; distillation matches their distributions, so the two agree in class and often in
    style, and need not agree in more. Images that are their nearest training images are memorised:
    samples/nearest_distance is the histogram of the distances. Points are scatter panels instead, beside training data.
    The teacher is sampled once a run. Latents are shown as the images that their VAE makes; the nearest training image
    is then that of the nearest latents. There is no row of training images without real data.
    """

    def __init__(self, every_n_turns: int = 500, num_samples: int = 50, seed: int = 0) -> None:
        """Args:
        every_n_turns: between two pictures.
        num_samples: in a picture.
        seed: of the latents.
        """
        if every_n_turns < 1 or num_samples < 1:
            raise ValueError(f"SampleGrid needs positive numbers: got {every_n_turns} and {num_samples}")
        self.every_n_turns, self.num_samples, self.seed = every_n_turns, num_samples, seed
        self._teacher: dict[str, _Row] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Sample on schedule."""
        module = generative(pl_module)
        if trainer.global_step % self.every_n_turns:
            return
        # log_dir is broadcast from rank 0, so every rank has to ask for it
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"
        if self._teacher is None:
            self._teacher = {}
            if isinstance(module, DistillationModule):
                self._teacher = self._drawn(module.teacher_model(), trainer)
        rows = self._drawn(module.generative_model(), trainer) | self._teacher
        path, title = folder / f"{trainer.global_step:07d}.png", f"after {trainer.global_step:,} turns"
        on_rank_0(lambda: self._draw(rows, title, path, trainer))
        log_picture(trainer.loggers, "samples/grid", path, trainer.global_step)

    def _drawn(self, model: GenerativeModel, trainer: L.Trainer) -> dict[str, _Row]:
        """The samples under the model's name, drawn by rank 0; the others help to gather its weights."""
        model = in_run_precision(trainer, model)
        decoder = model.decoder or getattr(data_of(trainer), "decoder", None)
        name = f"{model.kind}\n{model.evaluations} evaluation{'s' * (model.evaluations > 1)}"

        def drawn() -> _Row:
            condition: Conditioned = model.labels(self.num_samples)
            if condition is None and model.denoiser.takes:  # no classes, as of prompts: those of the data, repeated
                named, _ = data_of(trainer).named_conditions(self.num_samples)
                condition = named.rows(torch.arange(self.num_samples) % cast(int, named.length))
            samples = model.sample(model.noise(self.num_samples, self.seed), condition)
            return _row(samples, decoder, trainer)

        with model.whole():
            return {name: on_rank_0(drawn)}

    def _draw(self, rows: dict[str, _Row], title: str, path: Path, trainer: L.Trainer) -> None:
        (name, first), *others = rows.items()
        samples, data = first.samples, data_of(trainer)
        has_real = isinstance(data, GenerativeDataModule) and data.has_real and data.sample_shape == samples.shape[1:]
        train = data.train_samples if has_real else None
        if samples.ndim != 4:
            panels = {f"{name}, {title}": samples, **{other: row.samples for other, row in others}}
            if train is not None:
                chosen = torch.randperm(len(train), generator=generator_for(self.seed))[: len(samples)]
                panels["training data"] = train.rows(chosen).x
            sample_grid_figure({panel.replace("\n", ", "): points for panel, points in panels.items()}, path)
            return
        if train is not None:
            nearest, distances = nearest_images(samples, train)
            rows["nearest\ntraining image"] = _row(nearest, data.decoder, trainer)
            log_histogram(trainer.loggers, "samples/nearest_distance", distances, trainer.global_step)
        compared_grid_figure({name: row.shown for name, row in rows.items()}, title, path)


def _row(samples: Tensor, decoder: Decoder | None, trainer: L.Trainer) -> _Row:
    if decoder is None:
        return _Row(samples, samples)
    return _Row(samples, decoder.to(trainer.strategy.root_device)(samples, batch_size=4))


def nearest_images(samples: Tensor, training: InMemorySplit) -> tuple[Tensor, Tensor]:
    """The training image nearest to each sample, and the root mean square difference of their pixels.

    Args:
        samples: [n, ...].
        training: m > 0 of them, of which the first 50,000 are looked at, a few at a time.

    Returns:
        [n, ...] and float64 [n].
    """
    points = samples.flatten(1).double()
    best, index = (
        torch.full((len(points),), torch.inf, dtype=torch.float64),
        torch.zeros(len(points), dtype=torch.int64),
    )
    for part in torch.arange(min(len(training), SEARCHED)).split(CHUNK):
        distance, place = torch.cdist(points, training.rows(part).x.flatten(1).double()).min(1)
        closer = distance < best
        best, index = torch.where(closer, distance, best), torch.where(closer, part[place], index)
    return training.rows(index).x, best / points.shape[1] ** 0.5
