"""Distilling a teacher into a one-step (or few-step) student: what a run is built of, and what it leaves."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from fdistill.core.distributed import warn_on_rank_0
from fdistill.data import GenerativeDataModule
from fdistill.io.checkpoints import RECORD
from fdistill.io.export.stock_text import is_text_student, scheduled
from fdistill.io.stock_pipeline import PIPELINE
from fdistill.models.adapters import own_parameters
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import train_without_dropout
from fdistill.objectives import Objective
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.objectives.rewards import Reward
from fdistill.sampling import Start
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.student_steps import check_start, check_temperature
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.schedules import Schedule
from fdistill.training.anchor import Anchor
from fdistill.training.argument_checks import (
    First,
    Stored,
    check_arguments,
    check_guidance,
    check_imitation,
    check_latents,
    check_one_step,
    check_real,
    check_stored,
    is_auto,
)
from fdistill.training.averaging.ema import EMA
from fdistill.training.discrimination import Reads, build_discriminator
from fdistill.training.distillation_turn import DistillationTurn
from fdistill.training.initial_networks import (
    configure_blocks,
    described_source,
    fake_guidance_like,
    fitting_pairs,
    guidance_facts,
    known_sigma_data,
    learners,
    start_at_rank_0,
    teacher_guidance,
    teacher_model,
)
from fdistill.training.noise_range import check_on_path, check_same_start, known_by, levels_on_path, student_levels
from fdistill.training.roles import FullCopies, Roles, check_same_roles, write_roles
from fdistill.training.student_validation import StudentValidation
from fdistill.training.turn_schedule import Turn, TurnSchedule

_Given = Denoiser | str | None


class DistillationModule(DistillationTurn, StudentValidation):
    """Distillation of a teacher into a student by an objective: which distributions are matched, and how.

    The student descends its objective at its own noised samples; the fake score learns their score, a discriminator
    their log density ratio, and each is built and evaluated only where the objective needs it. No network drops
    anything out here, whatever the teacher was trained with: student and fake score learn as they are evaluated.

    Args:
        teacher: a run checkpoint or exported folder of a teacher, a denoiser, or in Python a GenerativeModel.
        objective: what the student descends (`fdistill.objectives`).
        noise_levels: noise at which the student is matched.
        student_optimizer: class_path and init_args.
        fake_score_optimizer: class_path and init_args, of fake score and discriminator; usually the faster one.
        sigma_init: noise level the student starts from, > 0, or "auto" for the highest at which the teacher's single
            denoising is diverse (`fdistill.sampling.start_level`); None where there are student_times.
        renoise_levels: noise levels of its further steps, falling; none for a one-step student.
        student_times: all its levels by times of the teacher's path, falling: timesteps, or t in (0, 1] along a flow.
        start: what its first step makes of noise z: "sigma" for sigma_init z, "unit" for sqrt(1 + sigma_init^2) z,
            where stock pipelines start.
        temperature: factor of the noise that the student is sampled from, not trained on, see `GenerativeModel`.
        student: initial student, a denoiser or a checkpoint of one, or a LoRA file (.safetensors) of the teacher; None
            copies the teacher. `Denoiser(Generator, Direct())` is any differentiable generator.
        fake_score: initial fake score, likewise.
        fake_noise_levels: noise at which fake score and discriminator learn; None for the student's. Alternating only.
        sigma_data: standard deviation of the data; None takes what the fake score's EDM preconditioning or an
            imported teacher knows.
        turn: fused (every network learns from one generated batch) or alternating (one network a turn).
        fake_updates_per_student: fake-score turns before each student turn, when alternating; SDS has none.
        discriminator: reads the encoder features of teacher or fake score, or the noised sample itself (small data).
        discriminator_lr: None for the fake score's learning rate.
        r1_weight: of half the squared gradient of the logit at noised real samples; 0 computes none.
        r1_step: 0 for the exact gradient; else a finite difference of this many standard deviations, which is cheaper.
        instance_noise: standard deviation of noise that the discriminator's samples get beside sigma; falling to 0, as
            a rule. Its ratio is then that of the laws noised at sqrt(sigma^2 + instance_noise^2).
        pairs: file of `fdistill pairs`, for an objective that regresses to them; they lie on the device.
        guidance: scale of the teacher's guidance; classifier-free where there is no guide.
        guidance_interval: the noise levels, low and high, between which the teacher is guided; None for all.
        guide: a weaker denoiser or a checkpoint of one, away from which the teacher is guided.
        guidance_rescale: share in [0, 1] of guided predictions brought to the size of unguided ones, see `Guidance`;
            None for the imported teacher's own.
        fake_guidance: scale of the fake score while the student learns; needs fake_label_dropout.
        fake_training_guidance: its scale while it learns itself (long and short guidance, arXiv 2406.01561: kappa 1
            beside fake_guidance, kappa 2, and guidance, kappa 4).
        projection_guidance: kappa 3, its scale in the score projection of SiD and its like; None for fake_guidance.
        fake_label_dropout: share of samples that the fake score learns without their class. Alternating only.
        gradient_clip: largest gradient norm of each network.
        ema_decay: of the student's moving average.
        fake_score_warmup: turns at the start in which only fake score and discriminator learn.
        reuse_generated: whether fake turns noise the last student turn's samples anew, one update old by then, which
            saves a forward pass of the student in each. Alternating only.
        imitation: share of its own weights that the fake score keeps as each update moves it to the student's; 1: all.
        ratio_bins: noise bins of equal probability in which the ratio is centred.
        ratio_decay: of the bins' moving averages.
        accumulate: micro-batches that a turn splits its batch into, with the memory of one; a divisor of
            data.batch_size. Losses that are means over samples make the step of the whole batch, up to rounding.
            Within a micro-batch stay: the mean weight h(r) that others are divided by, the root mean square that
            UniInstruct normalises, the Monge gap, the norms of a Balance. The ratio's bins end a turn as with the whole
            batch, but a micro-batch is centred by itself and those before it. Instance noise, pairs, the directions of
            r1_step and random skews are drawn for each micro-batch: other numbers of the same law.
        skip_nonfinite: turns in a row with a NaN or an infinity that are skipped and counted; 0 stops at the first.
        teacher_dtype: of the matrices and kernels of teacher and guide; bfloat16 halves their memory, and they compute
            in it whatever the run's precision; int8 halves it again. Full copies start from the weights before they
            are rounded.
        feature_blocks: numbers of the blocks of a text-to-image network behind which the discriminator reads
            features of teacher or fake score; None for the middle.
        meta_start: whether rank 0 alone gets the weights of all networks on the CPU when they are built. The others
            get their copies, or their parts of them, from it when the run starts.
        gradient_checkpointing: whether blocks keep no activations and are computed again in the backward pass: a third
            more arithmetic in what is differentiated, for the memory of one block; networks of diffusers only.
        roles: of student and fake score: full copies of the teacher where not given, or adapters (`SharedBase`).
        seed: of all noise; set by seed_everything on the command line.

    Raises:
        ValueError: an argument is out of its range, networks do not fit each other, or the objective lacks what it
            needs.
    """

    frozen_prefixes = ("teacher.", "guide.", "frozen.")

    def __init__(
        self,
        teacher: Denoiser | str,
        objective: Objective,
        noise_levels: NoiseLevels,
        student_optimizer: OptimizerCallable,
        fake_score_optimizer: OptimizerCallable,
        sigma_init: First | None = None,
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
        instance_noise: float | Schedule = 0.0,
        pairs: str | None = None,
        guidance: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: Denoiser | str | None = None,
        guidance_rescale: float | None = None,
        fake_guidance: float = 1.0,
        fake_training_guidance: float = 1.0,
        projection_guidance: float | None = None,
        fake_label_dropout: float = 0.0,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        fake_score_warmup: int = 0,
        reuse_generated: bool = False,
        imitation: float = 1.0,
        ratio_bins: int = 10,
        ratio_decay: float = 0.99,
        accumulate: int = 1,
        skip_nonfinite: int = 0,
        teacher_dtype: Stored = "float32",
        meta_start: bool = False,
        student_times: Sequence[float] = (),
        feature_blocks: Sequence[int] | None = None,
        gradient_checkpointing: bool = False,
        start: Start = "sigma",
        temperature: float = 1.0,
        roles: Roles | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, gradient_clip, accumulate, skip_nonfinite)
        counts, guided = (fake_updates_per_student, fake_score_warmup), (guidance, guidance_interval, guide)
        choices = (turn, discriminator, fake_noise_levels, fake_label_dropout, reuse_generated)
        check_arguments(objective, *choices, *counts, pairs, r1_weight, r1_step, instance_noise)
        self.objective, self.roles, self.discriminator_lr = objective, roles or FullCopies(), discriminator_lr
        self.is_auto, self.start = is_auto(sigma_init, start, meta_start), check_start(start)
        self.instance_noise, self.turn_schedule = instance_noise, TurnSchedule.of(objective.needs.others, turn, *counts)
        self.reads, self.imitation = discriminator if objective.needs.discriminator else "none", imitation
        self.teacher_source, self.guidance_facts = described_source(teacher), guidance_facts(*guided, guidance_rescale)
        self.student_optimizer, self.fake_score_optimizer = student_optimizer, fake_score_optimizer
        self.r1_weight, self.r1_step, self.reuse_generated = r1_weight, r1_step, reuse_generated
        self.temperature, dtype = check_temperature(temperature), check_stored(teacher_dtype, self.reads, r1_weight)
        with start_at_rank_0(self, meta_start):
            loaded = self._keep_teacher(teacher_model(teacher), dtype)
            self.levels = student_levels(sigma_init, renoise_levels, student_times, loaded.denoiser)
            self._start_learners(loaded, student, fake_score, ema_decay, sigma_data)
            self.guidance = teacher_guidance(*guided, guidance_rescale, loaded, dtype)
            self._guide_fake(guidance, fake_guidance, fake_training_guidance, projection_guidance, fake_label_dropout)
            self._configure(feature_blocks, gradient_checkpointing)
            self._keep_to_path(noise_levels, fake_noise_levels)
            self.pairs = None if pairs is None else fitting_pairs(pairs, self.student, self.guidance)
            self.ratio = self._ratio(ratio_bins, ratio_decay) if objective.needs.discriminator else None

    def _keep_teacher(self, loaded: GenerativeModel, dtype: torch.dtype) -> GenerativeModel:
        self.teacher = copy.deepcopy(loaded.denoiser).requires_grad_(False).eval().hold_in(dtype)
        self._teacher_grid, self._teacher_sampler = loaded.sigmas, loaded.sampler
        self._decoder, self._teacher_start = loaded.decoder, loaded.start
        return loaded

    def _start_learners(
        self, loaded: GenerativeModel, student: _Given, fake_score: _Given, ema_decay: float, sigma_data: float | None
    ) -> None:
        needs = self.objective.needs
        self.anchor = Anchor.of(self.objective, loaded, self.levels, self.start)
        with_fake = needs.fake_score != "nothing" or self.reads == "fake_score"
        self.student, self.fake_score = learners(
            self.roles, loaded.denoiser, self.teacher, student, fake_score, with_fake
        )
        check_one_step(self.objective, self.student, self.levels, self.start)
        check_imitation(self.imitation, self.fake_score, self.student)
        self.frozen = nn.ModuleList(self.objective.networks()).requires_grad_(False).eval()
        for reward in (part for part in self.frozen if isinstance(part, Reward)):
            reward.check_takes(self.student.takes)
        self.ema, self.teacher_facts = EMA(self.student, ema_decay), loaded.facts
        self.sigma_data = known_sigma_data(sigma_data, self.fake_score or self.teacher, loaded.facts)

    def _guide_fake(
        self, teacher: float, scale: float, training: float, projection: float | None, dropout: float
    ) -> None:
        check_guidance(self.objective, teacher, scale, training, projection, dropout, self.fake_score)
        self.fake_label_dropout = dropout
        self.guide = Guidance.of(self.guidance).guide
        self.fake_guidance = fake_guidance_like(self.guidance, scale)
        self.fake_training_guidance = fake_guidance_like(self.guidance, training)
        other = projection is not None and projection != scale
        self.projection_guidance = fake_guidance_like(self.guidance, cast(float, projection)) if other else None

    def _configure(self, feature_blocks: Sequence[int] | None, gradient_checkpointing: bool) -> None:
        read, others = (self.teacher, self.fake_score), (self.student, self.guide)
        configure_blocks(read, others, feature_blocks, gradient_checkpointing)

    def _keep_to_path(self, noise_levels: NoiseLevels, fake_noise_levels: NoiseLevels | None) -> None:
        check_on_path(self.levels, self.student)
        self.known = known_by(self.teacher, self.guide, self.fake_score)
        self.noise_levels = self.fake_noise_levels = levels_on_path("noise_levels", noise_levels, self.known)
        if fake_noise_levels is not None:
            self.fake_noise_levels = levels_on_path("fake_noise_levels", fake_noise_levels, self.known)

    def _ratio(self, bins: int, decay: float) -> RatioEstimator:
        network = build_discriminator(self.reads, self.teacher, self.student, self.fake_score, self.seed)
        return RatioEstimator(network, self.noise_levels, self.sigma_data, bins, decay)

    def generative_model(self) -> GenerativeModel:
        facts = {
            **self.run_facts(),
            "objective": self.objective.spec(),
            "teacher": self.teacher_source,
            "turn": self.turn_schedule.turn,
            **self.guidance_facts,
            **{name: self.teacher_facts[name] for name in (PIPELINE,) if name in self.teacher_facts},
        }
        model = GenerativeModel.student(self.ema.average, self.levels, facts, self.start)
        return replace(model, decoder=self._decoder, temperature=self.temperature)

    def teacher_model(self) -> GenerativeModel:
        """The frozen teacher with its sampler, at the guidance that the student learns."""
        how: dict[str, Any] = {"guidance": self.guidance, "sampler": self._teacher_sampler, "decoder": self._decoder}
        how["start"] = self._teacher_start
        return GenerativeModel(self.teacher, "teacher", self._teacher_grid, **how)

    def setup(self, stage: str) -> None:
        """Check what only the run can tell: real data where the objective needs it, latents of the teacher's scale."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, GenerativeDataModule) and stage == "fit":
            check_real(self.objective, data)
            check_latents(self._decoder, data)

    def on_fit_start(self) -> None:
        """Let the objective see the data, with its networks on their device already, and bring there what else it has.

        A checkpoint is read before its networks have moved; pairs that stayed behind would be copied in every turn.
        """
        made = self.generative_model()
        if is_text_student(made):
            try:
                scheduled(made)
            except ValueError as error:  # it can be trained, and sampled here
                warn_on_rank_0(f"fdistill export would refuse this student: {error}")
        self.pairs = None if self.pairs is None else self.pairs.to(self.device)
        if self.last_generated is not None:
            x, condition = self.last_generated
            self.last_generated = x.to(self.device), condition.to(self.device)
        data = getattr(self.trainer, "datamodule", None)
        self.images_of = self._decoder
        if isinstance(data, GenerativeDataModule):
            self.images_of = self._decoder or data.decoder
            self.objective.prepare(data)
            self.frozen.requires_grad_(False).eval()  # what was fitted just now, too

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups: list[dict[str, Any]] = (
            [] if self.fake_score is None else [{"params": list(own_parameters(self.fake_score).values())}]
        )
        if self.ratio is not None:
            group: dict[str, Any] = {"params": list(self.ratio.parameters())}
            groups.append(group if self.discriminator_lr is None else {**group, "lr": self.discriminator_lr})
        fake = [self.fake_score_optimizer(groups)] if groups else []
        return [self.student_optimizer(own_parameters(self.student).values()), *fake]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the roles, and where an adapted student's base is found."""
        super().on_save_checkpoint(checkpoint)
        write_roles(self, "teacher", checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises CheckpointError where it is of other roles, or starts from another level."""
        check_same_roles(checkpoint.get("roles"), self.roles)
        super().on_load_checkpoint(checkpoint)
        if self.is_auto:
            check_same_start(checkpoint[RECORD], self.levels)

    def updates_after(self, turns: int) -> int:
        return self.turn_schedule.updates_after(turns)

    def is_logging_turn(self, turn: int) -> bool:
        return self.turn_schedule.is_logged(turn, cast(Any, self.trainer).log_every_n_steps)

    def train(self, mode: bool = True) -> "DistillationModule":
        """Teacher, guide and frozen networks stay in evaluation mode; student and fake score learn without dropout."""
        super().train(mode)
        for learner in (self.student, self.fake_score):
            if mode and learner is not None:
                train_without_dropout(learner)
        self.teacher.eval()
        if self.guide is not None:
            self.guide.eval()
        self.frozen.eval()
        return self
