"""At which noise levels the teacher is worse than the best linear denoiser, before a student learns from it."""

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch

from fdistill.core.distributed import on_rank_0
from fdistill.core.random import generator_for
from fdistill.evaluation.report.diagnostic_figures import see_saw_figure
from fdistill.evaluation.see_saw import LinearDenoiser, SeeSawCurve, see_saw
from fdistill.models.denoiser import Denoiser
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.noise_levels import LogUniform, NoiseLevels
from fdistill.training import DistillationModule
from fdistill.training.callbacks.measured import publish
from fdistill.training.loggers import log_picture
from fdistill.training.run_parts import data_of, generative


class SeeSaw(L.Callback):
    """Logs see_saw/excess/<bin> and see_saw/sigma/<bin> of the teacher, and writes diagnosis/see_saw_<turn>.png.

    Bin 0 has the lowest noise. Healthy is an excess at or below 0 everywhere; above 0 at high noise, the teacher's
    deterministic samples crowd together (`fdistill.evaluation.see_saw.see_saw`). A distillation looks once, after its
    first turn, at its frozen teacher without guidance; teacher training looks every n turns at its EMA. The linear
    denoiser is of the training split, and told the class where the teacher is; the loss is of the held-out one. Rank 0
    computes.
    """

    def __init__(
        self,
        every_n_turns: int = 1000,
        num_samples: int = 1000,
        num_bins: int = 10,
        noise_levels: NoiseLevels | None = None,
        exact: Denoiser | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        every_n_turns: between two looks while a teacher trains.
        num_samples: held-out ones in every bin, at least 2; fewer where there are fewer.
        num_bins: of equal probability.
        noise_levels: what is cut into bins; None for equal widths of ln sigma over the teacher's sampling grid.
        exact: the exact denoiser of analytic data; adds see_saw/eps_error/<bin>, the relative error of eps.
        seed: of the samples and their noise, the same at every look.
        """
        if every_n_turns < 1 or num_samples < 2 or num_bins < 1:
            raise ValueError(
                "SeeSaw needs every_n_turns >= 1, num_samples >= 2 and num_bins >= 1: got "
                f"{every_n_turns}, {num_samples}, {num_bins}"
            )
        self.every_n_turns, self.num_samples, self.num_bins = every_n_turns, num_samples, num_bins
        self.noise_levels, self.exact, self.seed = noise_levels, exact, seed
        self._linear: LinearDenoiser | None = None
        self._looked = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Look once at a frozen teacher, and on schedule at one that learns."""
        module = generative(pl_module)
        frozen = isinstance(module, DistillationModule)
        if self._looked if frozen else trainer.global_step % self.every_n_turns:
            return
        self._looked = True
        # log_dir is broadcast from rank 0, so every rank has to ask for it
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "diagnosis"
        path = folder / f"see_saw_{trainer.global_step:07d}.png"
        model = module.teacher_model() if isinstance(module, DistillationModule) else module.generative_model()
        with model.whole():
            numbers = on_rank_0(lambda: self._look(trainer, model, module.device, frozen, path))
        publish(trainer, module, numbers)

    def _look(
        self, trainer: L.Trainer, model: GenerativeModel, device: torch.device, frozen: bool, path: Path
    ) -> dict[str, float]:
        if self._linear is None:
            self._linear = self._best_linear(trainer, model.num_classes, device)
        if self.noise_levels is None:
            visited = model.sigmas[model.sigmas > 0]
            self.noise_levels = LogUniform(float(visited.min()), float(visited.max()))
        exact = None if self.exact is None else self.exact.to(device)
        curve = self._curve(trainer, model.denoiser, device, exact)
        best = None if exact is None else self._curve(trainer, exact, device, None)
        whose = "frozen teacher" if frozen else f"teacher after {trainer.global_step:,} turns"
        see_saw_figure(curve, f"See-saw of the {whose}", path, best)
        log_picture(trainer.loggers, "diagnosis/see_saw", path, trainer.global_step)
        columns = {"excess": curve.excess, "sigma": curve.sigma}
        if curve.eps_error is not None:
            columns["eps_error"] = curve.eps_error
        return {f"see_saw/{name}/{i}": float(v) for name, column in columns.items() for i, v in enumerate(column)}

    def _best_linear(self, trainer: L.Trainer, num_classes: int, device: torch.device) -> LinearDenoiser:
        train = data_of(trainer).train_samples
        labels = train.labels if num_classes else None
        return LinearDenoiser.fit(train, generator_for(self.seed, 2, device=device), labels, num_classes)

    def _curve(
        self, trainer: L.Trainer, denoiser: Denoiser, device: torch.device, exact: Denoiser | None
    ) -> SeeSawCurve:
        held_out = data_of(trainer).held_out_samples
        chosen = held_out.rows(torch.randperm(len(held_out), generator=generator_for(self.seed))[: self.num_samples])
        return see_saw(
            denoiser,
            cast(LinearDenoiser, self._linear),
            chosen.x.to(device),
            chosen.classes.to(device),
            cast(NoiseLevels, self.noise_levels),
            generator_for(self.seed, 1, device=device),
            self.num_bins,
            exact,
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether it has looked."""
        return {"looked": self._looked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A frozen teacher is not looked at again."""
        self._looked = state_dict["looked"]
