"""Distilling a teacher into a one-step student, in fused or alternating turns."""

import copy
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fdistill.data import Batch
from fdistill.denoiser import Denoiser, HalfDenoised
from fdistill.distributed import gather_rows
from fdistill.divergences import FDivergence
from fdistill.ema import EMA
from fdistill.generative_model import GenerativeModel
from fdistill.log_ratio import FeatureDiscriminator, RatioEstimator, SampleDiscriminator, unit_mean
from fdistill.metrics import frechet_distance
from fdistill.modules.base import GenerativeModule
from fdistill.modules.start import check_choices, check_numbers, known_sigma_data, learners, teacher_model
from fdistill.noise_levels import NoiseLevels
from fdistill.objectives import (
    denoising_loss,
    discriminator_loss,
    generator_loss,
    matching_direction,
    sample_normaliser,
    sigma_normaliser,
)
from fdistill.random_streams import generator_for


class Generated(NamedTuple):
    """Student samples, noised once."""

    x: Tensor  # with the student's graph where the student learns
    x_t: Tensor  # detached
    sigma: Tensor
    labels: Tensor | None


class TeacherPass(NamedTuple):
    """What the frozen teacher says of the noised samples; None where this turn does not ask."""

    x_t: Tensor  # requires grad where the adversarial term needs it
    half: HalfDenoised | None
    denoised: Tensor | None


class DistillationModule(GenerativeModule):
    """One-step distillation by matching noised distributions under an f-divergence.

    The student descends h(r) (s_q - s_p) at its own noised samples; the fake score learns s_q, a discriminator ln r.
    """

    frozen_prefixes = ("teacher.",)
    last_ratio: tuple[Tensor, Tensor, Tensor] | None = None
    """sigma, log ratio and weight h(r) [B] of the last student update on this rank; None where h needs no ratio."""

    def __init__(
        self,
        teacher: Denoiser | str,
        divergence: FDivergence,
        noise_levels: NoiseLevels,
        student_optimizer: OptimizerCallable,
        fake_score_optimizer: OptimizerCallable,
        sigma_init: float,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
        fake_noise_levels: NoiseLevels | None = None,
        sigma_data: float | None = None,
        turn: Literal["fused", "alternating"] = "alternating",
        fake_updates_per_student: int = 5,
        discriminator: Literal["teacher", "sample"] = "teacher",
        discriminator_lr: float | None = None,
        adversarial_weight: float = 0.0,
        normaliser: Literal["sample", "sigma"] = "sample",
        guidance: float = 1.0,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        fake_score_warmup: int = 0,
        ratio_bins: int = 10,
        ratio_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        """Args:
        teacher: a run checkpoint or exported folder of a teacher, or a denoiser (an analytic one, say).
        divergence: what is minimised between teacher and student.
        noise_levels: noise at which the student is matched.
        student_optimizer: class_path and init_args.
        fake_score_optimizer: class_path and init_args; its learning rate is usually the larger one.
        sigma_init: noise level the student starts from, > 0.
        student: initial student; None copies the teacher.
        fake_score: initial fake score; None copies the teacher.
        fake_noise_levels: noise at which fake score and discriminator learn; None for the student's. Alternating only.
        sigma_data: standard deviation of the data; None takes it from the fake score's EDM preconditioning.
        turn: fused (every network learns from one generated batch) or alternating (one network a turn).
        fake_updates_per_student: fake-score turns before each student turn, when alternating.
        discriminator: reads the teacher's encoder features, or the noised sample itself (small data).
        discriminator_lr: None for the fake score's learning rate.
        adversarial_weight: of softplus(-logit) in the student's loss; 0 computes none.
        normaliser: step size by sample (DMD) or by noise level alone (below about 16 dimensions).
        guidance: classifier-free guidance scale of the teacher.
        gradient_clip: largest gradient norm of each network.
        ema_decay: of the student's moving average.
        fake_score_warmup: turns at the start in which only fake score and discriminator learn.
        ratio_bins: noise bins of equal probability in which the ratio is centred.
        ratio_decay: of the bins' moving averages.
        seed: of all noise; set by seed_everything on the command line.
        """
        super().__init__(seed, gradient_clip)
        check_numbers(sigma_init, fake_updates_per_student, adversarial_weight, fake_score_warmup)
        check_choices(turn, discriminator, normaliser, fake_noise_levels)
        self.teacher_source = str(teacher) if isinstance(teacher, str | Path) else teacher.spec()
        loaded = teacher_model(teacher)
        self.teacher, self._teacher_sigmas = copy.deepcopy(loaded.denoiser).requires_grad_(False).eval(), loaded.sigmas
        self.student, self.fake_score = learners(loaded.denoiser, student, fake_score)
        self.ema = EMA(self.student, ema_decay)
        self.sigma_data = known_sigma_data(sigma_data, self.fake_score)
        self.divergence, self.noise_levels, self.sigma_init = divergence, noise_levels, sigma_init
        self.fake_noise_levels = fake_noise_levels or noise_levels
        self.student_optimizer, self.fake_score_optimizer = student_optimizer, fake_score_optimizer
        self.turn, self.fake_updates_per_student = turn, fake_updates_per_student
        self.adversarial_weight, self.normaliser, self.guidance = adversarial_weight, normaliser, guidance
        self.discriminator_lr, self.fake_score_warmup = discriminator_lr, fake_score_warmup
        self.ratio: RatioEstimator | None = None
        if divergence.needs_ratio or adversarial_weight:
            network = self._build_discriminator(discriminator)
            self.ratio = RatioEstimator(network, noise_levels, self.sigma_data, ratio_bins, ratio_decay)

    def generative_model(self) -> GenerativeModel:
        facts = {
            **self.run_facts(),
            "divergence": self.divergence.spec(),
            "teacher": self.teacher_source,
            "turn": self.turn,
            "adversarial_weight": self.adversarial_weight,
            "guidance": self.guidance,
        }
        return GenerativeModel.student(self.ema.average, self.sigma_init, facts)

    def teacher_model(self) -> GenerativeModel:
        """The frozen teacher with its sampler, at the guidance that the student learns."""
        return GenerativeModel(self.teacher, "teacher", self._teacher_sigmas, self.guidance)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups = [{"params": list(self.fake_score.parameters())}]
        if self.ratio is not None:
            group = {"params": list(self.ratio.parameters())}
            groups.append(group if self.discriminator_lr is None else {**group, "lr": self.discriminator_lr})
        return [self.student_optimizer(self.student.parameters()), self.fake_score_optimizer(groups)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        student_learns, fake_learns = self._who_learns(turn)
        generator = self.noise_source()
        generated = self._generate(batch, generator, student_learns)
        teacher = self._teacher_pass(generated, student_learns)
        with torch.set_grad_enabled(fake_learns):
            denoised_fake = self.fake_score(generated.x_t, generated.sigma, generated.labels)
        losses, log = {}, {}
        if fake_learns:
            losses |= self._fake_losses(batch, generated, teacher, denoised_fake, generator)
            self.manual_backward(sum(losses.values()))
        if student_learns:
            gradient, terms = self._student_gradient(generated, teacher, denoised_fake, log)
            losses |= terms
            self.manual_backward((generated.x * gradient).sum())
        norms = self._step(losses, student_learns, fake_learns)
        if student_learns:
            self.ema.update(self.student, self.updates_after(turn))
        if self.is_logging_turn(turn):
            log |= {f"grad_norm/{name}": norm for name, norm in norms.items()} | _balance(log)
            self.write_log({**losses, **log}, turn)

    def is_logging_turn(self, turn: int) -> bool:
        """Alternating runs log whole cycles, so that the student's terms are never left out."""
        every, cycle = self.trainer.log_every_n_steps, self._cycle
        return every > 0 and turn % (max(every // cycle, 1) * cycle) < cycle

    @property
    def _cycle(self) -> int:
        """Turns for one student update."""
        return 1 if self.turn == "fused" else self.fake_updates_per_student + 1

    def _who_learns(self, turn: int) -> tuple[bool, bool]:
        """(student, fake score) in this turn."""
        if turn < self.fake_score_warmup:
            return False, True
        if self.turn == "fused":
            return True, True
        student = (turn - self.fake_score_warmup) % self._cycle == self._cycle - 1
        return student, not student

    def updates_after(self, turn: int) -> int:
        return max(turn - self.fake_score_warmup, 0) // self._cycle

    def _generate(self, batch: Batch, generator: torch.Generator, student_learns: bool) -> Generated:
        labels = batch.labels if self.student.num_classes else None
        noise = self.normal(batch.x.shape, generator)
        sigma_init = torch.full((len(noise),), float(self.sigma_init), device=self.device)
        with torch.set_grad_enabled(student_learns):
            x = self.student(self.sigma_init * noise, sigma_init, labels)
        levels = self.noise_levels if student_learns else self.fake_noise_levels
        sigma = levels.sample(len(noise), generator, self.device)
        return Generated(x, self._noised(x.detach(), sigma, generator), sigma, labels)

    def _noised(self, x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
        return x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * self.normal(x.shape, generator)

    def _teacher_pass(self, generated: Generated, student_learns: bool) -> TeacherPass:
        """Only what this turn reads: features, with a graph to x_t for the adversarial term; the value."""
        adversarial = student_learns and self.adversarial_weight > 0
        x_t = generated.x_t.clone().requires_grad_() if adversarial else generated.x_t
        labels = generated.labels if self.teacher.num_classes else None
        if not student_learns and not self._reads_features:
            return TeacherPass(x_t, None, None)
        with torch.set_grad_enabled(adversarial):
            half = self.teacher.encode(x_t, generated.sigma, labels)
        if not student_learns:
            return TeacherPass(x_t, half, None)
        with torch.no_grad():
            denoised = self.teacher.finish(half)
            if self.guidance != 1 and self.teacher.num_classes:
                without = self.teacher(x_t, generated.sigma, self.teacher.no_class(x_t))
                denoised = without + self.guidance * (denoised - without)
        return TeacherPass(x_t, half, denoised)

    @property
    def _reads_features(self) -> bool:
        return self.ratio is not None and self.ratio.reads_features

    def _fake_losses(
        self,
        batch: Batch,
        generated: Generated,
        teacher: TeacherPass,
        denoised_fake: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Denoising on the student's samples; discrimination of them from real ones at the same noise levels."""
        _, x_t, sigma, labels = generated
        losses = {"loss/fake_score": denoising_loss(denoised_fake, generated.x, sigma, self.sigma_data)}
        if self.ratio is not None:
            real = self._noised(batch.x, sigma, generator)
            fake_half = real_half = None
            if self.ratio.reads_features:
                with torch.no_grad():
                    real_half = self.teacher.encode(real, sigma, labels if self.teacher.num_classes else None)
                fake_half = teacher.half.detach_features()
            losses["loss/discriminator"] = discriminator_loss(
                self.ratio.logit(fake_half, x_t, sigma, labels), self.ratio.logit(real_half, real, sigma, labels)
            )
        return losses

    def _student_gradient(
        self, generated: Generated, teacher: TeacherPass, denoised_fake: Tensor, log: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient at each sample of the student's loss, a mean over batch and entries; and the scalar terms."""
        x, sigma = generated.x.detach(), generated.sigma
        weight, adversarial, terms = torch.ones_like(sigma), torch.zeros_like(x), {}
        if self.ratio is not None:
            with torch.set_grad_enabled(self.adversarial_weight > 0):
                logit = self.ratio.logit(teacher.half, teacher.x_t, sigma, generated.labels)
            if self.adversarial_weight > 0:
                terms["loss/adversarial"] = generator_loss(logit)
                adversarial = self.adversarial_weight * torch.autograd.grad(terms["loss/adversarial"], teacher.x_t)[0]
            if self.divergence.needs_ratio:
                log_ratio = self.ratio.log_ratio(logit, sigma)
                unscaled = self.divergence.weight(log_ratio)
                self.last_ratio, weight = (sigma, log_ratio, unscaled), unit_mean(unscaled)
                log |= {
                    "weight/mean": unscaled.mean(),
                    "weight/max": unscaled.max(),
                    "ratio/log_mean": log_ratio.mean(),
                    "ratio/clipped_fraction": self.ratio.clipped_fraction(logit),
                }
        by_sample = self.normaliser == "sample"
        scale = sample_normaliser(x, teacher.denoised) if by_sample else sigma_normaliser(sigma, self.sigma_data)
        direction = matching_direction(teacher.denoised, denoised_fake, weight, scale)
        matching = direction / direction.numel()
        terms["loss/student"] = direction.square().mean() / 2
        log |= {
            "ratio/ess": weight.sum().square() / (weight.square().sum() * len(weight)),
            "image_gradient/matching": matching.norm(),
            "image_gradient/adversarial": adversarial.norm(),
        }
        return matching + adversarial, terms

    def _step(self, losses: dict[str, Tensor], student_learns: bool, fake_learns: bool) -> dict[str, Tensor]:
        student_optimizer, fake_optimizer = self.optimizers()
        networks: dict[str, nn.Module] = {}
        if student_learns:
            networks["student"] = self.student
        if fake_learns:
            networks["fake_score"] = self.fake_score
            if self.ratio is not None:
                networks["discriminator"] = self.ratio
        moving = [student_optimizer] * student_learns + [fake_optimizer] * fake_learns
        return self.guarded_step(losses, networks, moving)

    def train(self, mode: bool = True) -> "DistillationModule":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

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
        generator = generator_for(self.seed, batch_idx, self.global_rank)
        noise = torch.randn(batch.x.shape, generator=generator)
        return self.generative_model().sample(noise, batch.labels)

    def _build_discriminator(self, reads: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if reads == "teacher":
                return FeatureDiscriminator(self.teacher.network.feature_channels)
            return SampleDiscriminator(self.student.sample_shape, self.student.num_classes)


def _balance(log: dict[str, Tensor]) -> dict[str, float]:
    """Adversarial over matching gradient norm; nothing where one is 0: a first fake score is the teacher itself."""
    matching, adversarial = (float(log.get(f"image_gradient/{term}", 0)) for term in ("matching", "adversarial"))
    return {"image_gradient/balance": adversarial / matching} if matching and adversarial else {}
