"""Pictures of the EMA generator while it trains, always from the same latents."""

from pathlib import Path

import lightning.pytorch as L

from fdistill.modules import GenerativeModule
from fdistill.report import sample_grid_figure


class SampleGrid(L.Callback):
    """Writes samples/<turn>.png into the run folder."""

    def __init__(self, every_n_turns: int = 500, num_samples: int = 50, seed: int = 0) -> None:
        """Args:
        every_n_turns: between two pictures.
        num_samples: in a picture.
        seed: of the latents.
        """
        if every_n_turns < 1 or num_samples < 1:
            raise ValueError(f"SampleGrid needs positive numbers: got {every_n_turns} and {num_samples}")
        self.every_n_turns, self.num_samples, self.seed = every_n_turns, num_samples, seed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GenerativeModule, *args: object) -> None:
        """Sample on schedule."""
        if trainer.global_step % self.every_n_turns:
            return
        # log_dir is broadcast from rank 0, so every rank has to ask for it
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"
        if not trainer.is_global_zero:
            return
        model = pl_module.generative_model()
        samples = model.sample(model.noise(self.num_samples, self.seed), model.labels(self.num_samples))
        title = f"{model.kind} after {trainer.global_step} turns, {model.evaluations} evaluations"
        sample_grid_figure({title: samples}, folder / f"{trainer.global_step:07d}.png")
