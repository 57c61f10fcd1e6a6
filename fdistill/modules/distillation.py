"""Distilling a teacher into a one-step (or few-step) student, in fused or alternating turns."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fdistill.data import Batch, GenerativeDataModule
from fdistill.denoiser import Denoiser
from fdistill.ema import EMA
from fdistill.generative_model import GenerativeModel
from fdistill.log_ratio import RatioEstimator
from fdistill.modules.consult import Opinion, consult
from fdistill.modules.discrimination import Reads, build_discriminator, logit_of, r1_penalty
from fdistill.modules.generation import Generated, check_levels, drawn_steps, dropped_labels, simulate
from fdistill.modules.rhythm import Rhythm, Turn
from fdistill.modules.start import (
    check_choices,
    check_guidance,
    check_imitation,
    check_needs,
    check_numbers,
    check_real,
    known_sigma_data,
    learners,
    teacher_model,
)
from fdistill.modules.student_gradient import balance, ratio_log, student_gradient
from fdistill.modules.student_validation import StudentValidation
from fdistill.noise_levels import NoiseLevels
from fdistill.objectives import Needs, NoisedSamples, Objective, Regression, denoising_loss, discriminator_loss
from fdistill.objectives.base import Asked
from fdistill.pairs import TeacherPairs


class DistillationModule(StudentValidation):
    """Distillation of a teacher into a student by an objective: which distributions are matched, and how.

    The student descends its objective at its own noised samples; the fake score learns their score, a discriminator
    their log density ratio, and each is built and asked only where the objective needs it.

    Args:
        teacher: a run checkpoint or exported folder of a teacher, or a denoiser (an analytic one, say).
        objective: what the student descends (`fdistill.objectives`).
        noise_levels: noise at which the student is matched.
        student_optimizer: class_path and init_args.
        fake_score_optimizer: class_path and init_args, of fake score and discriminator; usually the faster one.
        sigma_init: noise level the student starts from, > 0.
        renoise_levels: noise levels of its further steps, falling; none for a one-step student.
        student: initial student, a denoiser or a checkpoint of one; None copies the teacher.
        fake_score: initial fake score, likewise.
        fake_noise_levels: noise at which fake score and discriminator learn; None for the student's. Alternating only.
        sigma_data: standard deviation of the data; None takes it from the fake score's EDM preconditioning.
        turn: fused (every network learns from one generated batch) or alternating (one network a turn).
        fake_updates_per_student: fake-score turns before each student turn, when alternating.
        discriminator: reads the encoder features of teacher or fake score, or the noised sample itself (small data).
        discriminator_lr: None for the fake score's learning rate.
        r1_weight: of half the squared gradient of the logit at noised real samples; 0 computes none.
        r1_step: 0 for the exact gradient; else a finite difference of this many standard deviations, which is cheaper.
        pairs: file of `fdistill pairs`, for an objective that regresses to them.
        guidance: classifier-free guidance scale of the teacher.
        fake_guidance: the same of the fake score while the student learns; needs fake_label_dropout.
        fake_label_dropout: share of samples that the fake score learns without their class. Alternating only.
        gradient_clip: largest gradient norm of each network.
        ema_decay: of the student's moving average.
        fake_score_warmup: turns at the start in which only fake score and discriminator learn.
        imitation: share of its own weights that the fake score keeps after each student update, which moves it towards
            the student's; 1 for none.
        ratio_bins: noise bins of equal probability in which the ratio is centred.
        ratio_decay: of the bins' moving averages.
        seed: of all noise; set by seed_everything on the command line.

    Raises:
        ValueError: an argument is out of its range, networks do not fit each other, or the objective lacks what it
            needs.
    """

    frozen_prefixes = ("teacher.", "frozen.")
    last_ratio: tuple[Tensor, Tensor, Tensor] | None = None
    """sigma, log ratio and weight h(r) [B] of the last student update on this rank; None where h needs no ratio."""

    def __init__(
        self,
        teacher: Denoiser | str,
        objective: Objective,
        noise_levels: NoiseLevels,
        student_optimizer: OptimizerCallable,
        fake_score_optimizer: OptimizerCallable,
        sigma_init: float,
        renoise_levels: Sequence[float] = (),
        student: Denoiser | str | None = None,
        fake_score: Denoiser | str | None = None,
        fake_noise_levels: NoiseLevels | None = None,
        sigma_data: float | None = None,
        turn: Turn = "alternating",
        fake_updates_per_student: int = 5,
        discriminator: Reads = "teacher",
        discriminator_lr: float | None = None,
        r1_weight: float = 0.0,
        r1_step: float = 0.0,
        pairs: str | None = None,
        guidance: float = 1.0,
        fake_guidance: float = 1.0,
        fake_label_dropout: float = 0.0,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        fake_score_warmup: int = 0,
        imitation: float = 1.0,
        ratio_bins: int = 10,
        ratio_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, gradient_clip)
        check_choices(turn, discriminator, fake_noise_levels, fake_label_dropout)
        check_numbers(fake_updates_per_student, fake_score_warmup, fake_label_dropout=fake_label_dropout)
        check_needs(objective, discriminator, pairs, r1_weight, r1_step)
        self.objective, self.noise_levels, needs = objective, noise_levels, objective.needs
        self.levels = check_levels(sigma_init, renoise_levels)
        self.rhythm = Rhythm(turn, fake_updates_per_student, fake_score_warmup)
        self.reads = discriminator if needs.discriminator else "none"
        self.teacher_source = str(teacher) if isinstance(teacher, str | Path) else teacher.spec()
        loaded = teacher_model(teacher)
        self.teacher, self._teacher_sigmas = copy.deepcopy(loaded.denoiser).requires_grad_(False).eval(), loaded.sigmas
        with_fake = needs.fake_score != "nothing" or self.reads == "fake_score"
        self.student, self.fake_score = learners(loaded.denoiser, student, fake_score, with_fake)
        check_guidance(guidance, fake_guidance, fake_label_dropout, self.fake_score)
        check_imitation(imitation, self.fake_score, self.student)
        self.frozen = nn.ModuleList(objective.networks()).requires_grad_(False).eval()
        self.ema = EMA(self.student, ema_decay)
        self.sigma_data = known_sigma_data(sigma_data, self.fake_score or self.student)
        self.fake_noise_levels = fake_noise_levels or noise_levels
        self.student_optimizer, self.fake_score_optimizer = student_optimizer, fake_score_optimizer
        self.guidance, self.fake_guidance, self.fake_label_dropout = guidance, fake_guidance, fake_label_dropout
        self.discriminator_lr, self.imitation = discriminator_lr, imitation
        self.r1_weight, self.r1_step = r1_weight, r1_step
        self.pairs = None if pairs is None else TeacherPairs.load(pairs)
        if self.pairs is not None:
            self.pairs.check_fits(self.student.sample_shape, self.student.num_classes, guidance)
        self.ratio: RatioEstimator | None = None
        if needs.discriminator:
            network = build_discriminator(self.reads, self.teacher, self.student, self.fake_score, seed)
            self.ratio = RatioEstimator(network, noise_levels, self.sigma_data, ratio_bins, ratio_decay)

    def generative_model(self) -> GenerativeModel:
        facts = {
            **self.run_facts(),
            "objective": self.objective.spec(),
            "teacher": self.teacher_source,
            "turn": self.rhythm.turn,
            "guidance": self.guidance,
        }
        return GenerativeModel.student(self.ema.average, self.levels, facts)

    def teacher_model(self) -> GenerativeModel:
        """The frozen teacher with its sampler, at the guidance that the student learns."""
        return GenerativeModel(self.teacher, "teacher", self._teacher_sigmas, self.guidance)

    def setup(self, stage: str) -> None:
        """Check what only the run can tell: real data where the objective needs it."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, GenerativeDataModule) and stage == "fit":
            check_real(self.objective, data)

    def on_fit_start(self) -> None:
        """Let the objective see the data, with its networks on their device already."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, GenerativeDataModule):
            self.objective.prepare(data)
            self.frozen.requires_grad_(False).eval()  # what was fitted just now, too

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups = [] if self.fake_score is None else [{"params": list(self.fake_score.parameters())}]
        if self.ratio is not None:
            group = {"params": list(self.ratio.parameters())}
            groups.append(group if self.discriminator_lr is None else {**group, "lr": self.discriminator_lr})
        return [self.student_optimizer(self.student.parameters()), self.fake_score_optimizer(groups)]

    def updates_after(self, turns: int) -> int:
        return self.rhythm.updates_after(turns)

    def is_logging_turn(self, turn: int) -> bool:
        return self.rhythm.is_logged(turn, self.trainer.log_every_n_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        student_learns, fake_learns = self.rhythm.learns(turn)
        objective = self.objective.at(self.updates)
        needs = objective.needs if student_learns else Needs()
        generator = self.noise_source()
        generated = self._generate(batch, generator, student_learns)
        x = generated.x.detach().requires_grad_(student_learns)
        x_t = generated.noised(x if needs.input_gradient else x.detach())
        teacher = self._ask_teacher(x_t, generated, needs, fake_learns)
        fake = self._ask_fake_score(x_t, generated, needs, fake_learns)
        losses, log = {}, {}
        if student_learns:
            regression_x, at, log = self._noised_samples(x, x_t, generated, teacher, fake, needs, generator)
            loss = objective.loss(at)
            gradient = student_gradient(loss, at)
            losses |= gradient.losses
            log |= gradient.log
            if loss.sample_weight is not None:
                self.last_ratio = (at.sigma, at.log_ratio, loss.sample_weight)
                log |= ratio_log(loss.sample_weight, at.log_ratio)
        if fake_learns:
            fake_losses = self._fake_losses(batch, generated, x_t.detach(), teacher, fake, generator)
            self.manual_backward(sum(fake_losses.values()))
            losses |= fake_losses
        if student_learns:
            self.manual_backward(_descent(generated.x, gradient.x) + _descent(regression_x, gradient.regression))
        norms = self._step(losses, student_learns, fake_learns)
        if student_learns:
            self._follow_student(turn)
        if self.is_logging_turn(turn):
            log |= {f"grad_norm/{name}": norm for name, norm in norms.items()} | balance(log)
            self.write_log({**losses, **log}, turn)

    def _generate(self, batch: Batch, generator: torch.Generator, student_learns: bool) -> Generated:
        labels = batch.labels if self.student.num_classes else None
        steps = drawn_steps(self.seed, self.global_step, len(self.levels))
        latents = [self.normal(batch.x.shape, generator) for _ in range(steps)]
        x = simulate(self.student, latents, self.levels, labels, student_learns)
        levels = self.noise_levels if student_learns else self.fake_noise_levels
        sigma = levels.sample(len(x), generator, self.device)
        noise, fake_labels = self.normal(batch.x.shape, generator), labels
        if self.fake_label_dropout and not student_learns:
            fake_labels = dropped_labels(labels, self.fake_score.num_classes, self.fake_label_dropout, generator)
        return Generated(x, noise, sigma, labels, fake_labels)

    def _ask_teacher(self, x_t: Tensor, generated: Generated, needs: Needs, fake_learns: bool) -> Opinion:
        """Only what this turn reads: features for the discriminator, the guided value for the student."""
        features = self._features_of("teacher", needs, fake_learns)
        return consult(self.teacher, x_t, generated.sigma, generated.labels, needs.teacher, features, self.guidance)

    def _ask_fake_score(self, x_t: Tensor, generated: Generated, needs: Needs, fake_learns: bool) -> Opinion:
        """The value that it learns with and the student reads; features where the discriminator reads them."""
        if self.fake_score is None:
            return Opinion()
        features = self._features_of("fake_score", needs, fake_learns)
        value: Asked = "value" if fake_learns and needs.fake_score == "nothing" else needs.fake_score
        guidance = 1.0 if fake_learns else self.fake_guidance
        labels = generated.fake_labels
        return consult(self.fake_score, x_t, generated.sigma, labels, value, features, guidance, fake_learns)

    def _features_of(self, network: str, needs: Needs, fake_learns: bool) -> Asked:
        if self.reads != network or not (needs.discriminator or fake_learns):
            return "nothing"
        return "gradient" if needs.logit else "value"

    def _noised_samples(
        self,
        x: Tensor,
        x_t: Tensor,
        generated: Generated,
        teacher: Opinion,
        fake: Opinion,
        needs: Needs,
        generator: torch.Generator,
    ) -> tuple[Tensor | None, NoisedSamples, dict[str, Tensor]]:
        """The student's samples of pairs, with its graph; what the objective asked for; numbers for the loggers."""
        at = NoisedSamples(x, x_t, generated.sigma, self.sigma_data, generated.labels)
        if needs.teacher != "nothing":
            at = at._replace(teacher=teacher.denoised)
        if needs.fake_score != "nothing":
            value = fake.denoised
            at = at._replace(fake_score=value if needs.fake_score == "gradient" else value.detach())
        self.last_ratio, log = None, {}
        if needs.discriminator:
            half = fake.half if self.reads == "fake_score" else teacher.half
            with torch.set_grad_enabled(needs.logit):
                logit = self.ratio.logit(half, x_t, at.sigma, at.labels)
            if needs.ratio:
                at = at._replace(log_ratio=self.ratio.log_ratio(logit, at.sigma))
                log["ratio/clipped_fraction"] = self.ratio.clipped_fraction(logit)
            if needs.logit:
                at = at._replace(logit=logit.float())  # bf16 under mixed precision
        regression_x = None
        if needs.pairs:
            latents, target, labels = self.pairs.draw(len(x), generator)
            regression_x = simulate(self.student, [latents], self.levels, labels, True)
            at = at._replace(regression=Regression(regression_x.detach().requires_grad_(), target))
        return regression_x, at._replace(update=self.updates, generator=generator), log

    def _fake_losses(
        self,
        batch: Batch,
        generated: Generated,
        x_t: Tensor,
        teacher: Opinion,
        fake: Opinion,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Denoising on the student's samples; discrimination of them from real ones at the same noise levels."""
        losses, sigma = {}, generated.sigma
        if self.fake_score is not None:
            losses["loss/fake_score"] = denoising_loss(fake.denoised, generated.x, sigma, self.sigma_data)
        if self.ratio is None:
            return losses
        labels = generated.fake_labels if self.reads == "fake_score" else generated.labels
        half = {"teacher": teacher, "fake_score": fake}.get(self.reads, Opinion()).half
        if self.reads == "teacher":
            half = half.detach_features()
        real = generated._replace(noise=self.normal(batch.x.shape, generator)).noised(batch.x)
        real_logit = self.logit(real, sigma, labels)
        losses["loss/discriminator"] = discriminator_loss(self.ratio.logit(half, x_t, sigma, labels), real_logit)
        if self.r1_weight:
            penalty = r1_penalty(
                lambda x: self.logit(x, sigma, labels), real, sigma, self.sigma_data, generator, self.r1_step
            )
            losses["loss/r1"] = self.r1_weight / 2 * penalty
        return losses

    def logit(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The discriminator's logit [B] at any noised samples; its optimum is the log density ratio ln p_t/q_t."""
        source = {"teacher": self.teacher, "fake_score": self.fake_score}.get(self.reads)
        return logit_of(self.ratio, source, x_t, sigma, labels, source_learns=self.reads == "fake_score")

    def _step(self, losses: dict[str, Tensor], student_learns: bool, fake_learns: bool) -> dict[str, Tensor]:
        student_optimizer, fake_optimizer = self.optimizers()
        fake_side = {"fake_score": self.fake_score, "discriminator": self.ratio} if fake_learns else {}
        networks = {"student": self.student} if student_learns else {}
        networks |= {name: network for name, network in fake_side.items() if network is not None}
        moving = [student_optimizer] * student_learns + [fake_optimizer] * fake_learns
        return self.guarded_step(losses, networks, moving)

    @torch.no_grad()
    def _follow_student(self, turn: int) -> None:
        """What happens after each student update: its average, and the fake score that imitates it."""
        self.ema.update(self.student, self.updates_after(turn))
        if self.imitation < 1:
            fake, student = list(self.fake_score.parameters()), list(self.student.parameters())
            torch._foreach_lerp_(fake, student, 1 - self.imitation)

    def train(self, mode: bool = True) -> "DistillationModule":
        """Teacher and frozen networks stay in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        self.frozen.eval()
        return self


def _descent(x: Tensor | None, gradient: Tensor | None) -> Tensor | float:
    """A number whose gradient with respect to the weights behind x is that of a loss with this gradient at x."""
    return 0.0 if x is None or gradient is None else (x * gradient).sum()
