"""Training a diffusion teacher: a weighted denoising loss, class dropout for guidance, EMA."""

from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from fdistill.core.random import VALIDATION, generator_for
from fdistill.data import Batch
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import Network
from fdistill.objectives import weighted_denoising_loss
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid
from fdistill.theory.loss_weights import EDMWeight, LossWeight
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.paths import NoiseRange
from fdistill.theory.preconditioning import Preconditioning
from fdistill.training.averaging.ema import EMA
from fdistill.training.base import GenerativeModule, MicroBatch, mean_of
from fdistill.training.guard import TurnValues
from fdistill.training.initial_networks import start_at_rank_0
from fdistill.training.noise_range import levels_on_path

_STEPS, _SIGMA_MIN, _SIGMA_MAX = 18, 0.002, 80.0  # of EDM's grid


class TeacherModule(GenerativeModule):
    """A denoiser learns E[x_0 | x_0 + sigma eps] from data; its EMA is the teacher."""

    def __init__(
        self,
        network: Network,
        preconditioning: Preconditioning,
        noise_levels: NoiseLevels,
        optimizer: OptimizerCallable,
        sigma_data: float = 0.5,
        label_dropout: float = 0.1,
        ema_decay: float = 0.999,
        gradient_clip: float = 1.0,
        num_steps: int = _STEPS,
        sigma_min: float = _SIGMA_MIN,
        sigma_max: float = _SIGMA_MAX,
        guidance: float = 1.0,
        loss_weight: LossWeight | None = None,
        sampler: Sampler | None = None,
        grid: SamplingGrid | None = None,
        accumulate: int = 1,
        skip_nonfinite: int = 0,
        meta_start: bool = False,
        seed: int = 0,
    ) -> None:
        """Args:
        network: the raw network F.
        preconditioning: how F becomes a denoiser (EDM, or the prediction type of a path).
        noise_levels: training distribution of sigma.
        optimizer: class_path and init_args of the optimiser.
        sigma_data: standard deviation of the data, for EDM's loss weight.
        label_dropout: share of samples trained without their condition, in [0, 1]; needed for guidance.
        ema_decay: of the weights' moving average, in [0, 1).
        gradient_clip: largest gradient norm of a step.
        num_steps: steps of EDM's sampling grid; 2 num_steps - 1 evaluations of Heun.
        sigma_min: its last noise level above 0.
        sigma_max: its first noise level.
        guidance: guidance scale when the teacher is sampled.
        loss_weight: of the denoising loss at every noise level; EDM's where not given. One that learns is trained and
            saved with the denoiser and is no part of the teacher. Validation always weighs as EDM does, so that its
            loss compares runs of the same noise levels.
        sampler: how the teacher is sampled; Heun where not given.
        grid: noise levels at which it is sampled, in place of num_steps, sigma_min and sigma_max.
        accumulate: micro-batches that a turn splits its batch into: the memory of one, and up to rounding the step of
            the whole batch. It divides data.batch_size.
        skip_nonfinite: turns in a row with a NaN or an infinity that are skipped and counted; 0 stops at the first.
        meta_start: whether rank 0 alone keeps the weights on the CPU when they are built, and sends the others theirs,
            or their parts of them, when the run starts.
        seed: of all noise; set by seed_everything on the command line.
        """
        super().__init__(seed, gradient_clip, accumulate, skip_nonfinite)
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is a probability in [0, 1]: got {label_dropout}")
        if label_dropout and network.takes and not network.knows_no_class:
            raise ValueError(
                f'{type(network).__name__} has no weights for "no class", which dropped labels need: '
                f"expected label_dropout 0, got {label_dropout}"
            )
        with start_at_rank_0(self, meta_start):
            self.denoiser = Denoiser(network, preconditioning).train()  # it may come in evaluation mode
            self.ema = EMA(self.denoiser, ema_decay)
        known = self.denoiser.noise_range
        self.noise_levels, self.optimizer = levels_on_path("noise_levels", noise_levels, known), optimizer
        self.label_dropout = label_dropout
        self.validation_weight = EDMWeight(sigma_data)
        self.loss_weight = self.validation_weight if loss_weight is None else loss_weight
        edm_grid = {"num_steps": num_steps, "sigma_min": sigma_min, "sigma_max": sigma_max}
        levels = _levels(grid, edm_grid, known)
        self.sampling: dict[str, Any] = {**edm_grid, "guidance": guidance, "sampler": sampler, "sigmas": levels}
        GenerativeModel.teacher(
            self.ema.average, **self.sampling
        )  # an impossible grid is refused now, not after training

    def generative_model(self) -> GenerativeModel:
        model = GenerativeModel.teacher(self.ema.average, **self.sampling, facts=self.run_facts())
        model.decoder = getattr(getattr(self._trainer, "datamodule", None), "decoder", None)  # of data that is latents
        return model

    def setup(self, stage: str) -> None:
        """Check what only the run can tell: real samples to learn from."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not getattr(data, "has_real", True):
            raise ValueError(f"a teacher learns from real samples: {type(data).__name__} has none; give a dataset")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([weight for part in self.learning().values() for weight in part.parameters()])

    def learning(self) -> dict[str, nn.Module]:
        """What the optimiser moves, by name."""
        parts = {"teacher": self.denoiser, "loss_weight": self.loss_weight}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        parts = [self._learn(batch, part) for part in self.micro_batches(len(batch.x))]
        losses, samples = mean_of([part[0] for part in parts]), TurnValues.joined([part[1] for part in parts])
        optimizer = cast(LightningOptimizer, self.optimizers())
        norms = self.guarded_step(losses, self.learning(), [optimizer], samples)
        if norms is None:
            return
        self.ema.update(self.denoiser, turn)
        if self.is_logging_turn(turn):
            self.write_log({**losses, **{f"grad_norm/{name}": norm for name, norm in norms.items()}}, turn)

    def _learn(self, batch: Batch, part: MicroBatch) -> tuple[dict[str, Tensor], TurnValues]:
        loss, samples = self._loss(self.denoiser, batch, part.whole, self.label_dropout, self.loss_weight, part.rows)
        self.backward_share(loss)
        return {"loss/teacher": loss}, samples

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank, device=self.device)
        loss, _ = self._loss(self.ema.average, batch, generator, 0.0, self.validation_weight)
        self.log("validation/loss", loss, batch_size=len(batch.x), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its conditions."""
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        model = self.generative_model()
        return model.sample(torch.randn(batch.x.shape, generator=generator), batch.condition)

    def _loss(
        self,
        denoiser: Denoiser,
        batch: Batch,
        generator: torch.Generator,
        dropout: float,
        weight: LossWeight,
        rows: slice = slice(None),
    ) -> tuple[Tensor, TurnValues]:
        """The mean loss of these rows; the noise is drawn for all, so that no row's depends on how they are split."""
        x_0, condition = batch.x, batch.condition.only(denoiser.takes)
        sigma = self.noise_levels.sample(len(x_0), generator, self.device)
        noise = self.normal(x_0.shape, generator)
        if dropout > 0 and denoiser.takes:
            dropped = torch.rand(len(x_0), generator=generator, device=self.device) < dropout
            condition = condition.where(dropped, denoiser.null(1, self.device))
        x_0, sigma = x_0[rows], sigma[rows]
        x = x_0 + sigma.reshape(-1, *[1] * (x_0.ndim - 1)) * noise[rows]
        denoised = denoiser(x, sigma, condition.rows(rows))
        return weighted_denoising_loss(denoised, x_0, sigma, weight), TurnValues(sigma, [x, denoised])


def _levels(grid: SamplingGrid | None, edm_grid: dict[str, float], known: NoiseRange) -> Tensor | None:
    """The noise levels that a grid names, which leaves nothing to say for EDM's numbers; these lie on the path."""
    if grid is None:
        for name in ("sigma_min", "sigma_max"):
            known.check(name, [edm_grid[name]])
        return None
    if tuple(edm_grid.values()) != (_STEPS, _SIGMA_MIN, _SIGMA_MAX):
        raise ValueError(
            "grid names every noise level of the teacher's sampling: expected no other num_steps, sigma_min or "
            f"sigma_max beside it, got {edm_grid}; set them in the grid"
        )
    return grid.levels()
