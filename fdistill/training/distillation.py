"""Distilling a teacher into a one-step (or few-step) student: what a run is built of, and what it leaves."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fdistill.core.distributed import warn_on_rank_0
from fdistill.core.random import VALIDATION, generator_for
from fdistill.data import Batch, GenerativeDataModule
from fdistill.evaluation.metrics.frechet_distance import Moments
from fdistill.evaluation.metrics.pixel_distance import PixelMoments, pixel_frechet_distance
from fdistill.io.export.stock_text import is_text_student, scheduled
from fdistill.io.stock_pipeline import PIPELINE
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import train_without_dropout
from fdistill.objectives import Objective
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.sampling import Start
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.student_steps import check_start
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.schedules import Schedule
from fdistill.training.anchor import Anchor
from fdistill.training.argument_checks import (
    Stored,
    check_choices,
    check_guidance,
    check_imitation,
    check_instance_noise,
    check_latents,
    check_levels,
    check_needs,
    check_numbers,
    check_one_step,
    check_real,
    check_stored,
)
from fdistill.training.averaging.ema import EMA
from fdistill.training.checkpointed_blocks import checkpoint_blocks
from fdistill.training.discrimination import Reads, build_discriminator
from fdistill.training.distillation_turn import DistillationTurn
from fdistill.training.initial_networks import (
    described_source,
    fitting_pairs,
    guidance_facts,
    known_sigma_data,
    learners,
    start_at_rank_0,
    teacher_guidance,
    teacher_model,
)
from fdistill.training.noise_range import check_on_path, known_by, levels_on_path
from fdistill.training.turn_schedule import Turn, TurnSchedule


class DistillationModule(DistillationTurn):
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
        sigma_init: noise level the student starts from, > 0.
        renoise_levels: noise levels of its further steps, falling; none for a one-step student.
        start: what its first step makes of noise z: "sigma" for sigma_init z, "unit" for sqrt(1 + sigma_init^2) z,
            where stock pipelines start.
        student: initial student, a denoiser or a checkpoint of one; None copies the teacher.
        fake_score: initial fake score, likewise.
        fake_noise_levels: noise at which fake score and discriminator learn; None for the student's. Alternating only.
        sigma_data: standard deviation of the data; None takes what the fake score's EDM preconditioning or an
            imported teacher knows.
        turn: fused (every network learns from one generated batch) or alternating (one network a turn).
        fake_updates_per_student: fake-score turns before each student turn, when alternating.
        discriminator: reads the encoder features of teacher or fake score, or the noised sample itself (small data).
        discriminator_lr: None for the fake score's learning rate.
        r1_weight: of half the squared gradient of the logit at noised real samples; 0 computes none.
        r1_step: 0 for the exact gradient; else a finite difference of this many standard deviations, which is cheaper.
        instance_noise: standard deviation of noise that real and generated samples get beside sigma before the
            discriminator sees them; falling to 0, as a rule. Its ratio, which weighs the student's samples, is then
            that of the laws noised at sqrt(sigma^2 + instance_noise^2).
        pairs: file of `fdistill pairs`, for an objective that regresses to them; they lie on the device.
        guidance: scale of the teacher's guidance; classifier-free where there is no guide.
        guidance_interval: the noise levels, low and high, between which the teacher is guided; None for all.
        guide: a weaker denoiser or a checkpoint of one, away from which the teacher is guided.
        fake_guidance: the same of the fake score while the student learns; needs fake_label_dropout.
        fake_label_dropout: share of samples that the fake score learns without their class. Alternating only.
        gradient_clip: largest gradient norm of each network.
        ema_decay: of the student's moving average.
        fake_score_warmup: turns at the start in which only fake score and discriminator learn.
        reuse_generated: whether fake turns noise the last student turn's samples anew, one update old by then, in
            place of generating their own; saves a forward pass of the student in each. Alternating only.
        imitation: share of its own weights that the fake score keeps after each student update, which moves it towards
            the student's; 1 for none.
        ratio_bins: noise bins of equal probability in which the ratio is centred.
        ratio_decay: of the bins' moving averages.
        accumulate: micro-batches that a turn splits its batch into, with the memory of one; a divisor of
            data.batch_size. Losses that are means over samples make the step of the whole batch, up to rounding.
            Within a micro-batch stay: the mean weight h(r) that others are divided by, the root mean square that
            UniInstruct normalises, the Monge gap. The ratio's bins end a turn as with the whole batch, but a
            micro-batch is centred by itself and those before it. Instance noise, pairs, the directions of r1_step
            and random skews are drawn for each micro-batch: other numbers of the same law.
        skip_nonfinite: turns in a row with a NaN or an infinity that are skipped and counted; 0 stops at the first.
        teacher_dtype: of the matrices and kernels of teacher and guide; bfloat16 halves their memory, and they compute
            in it whatever the run's precision. Student and fake score start from the weights before they are rounded.
        meta_start: whether rank 0 alone gets the weights of all networks on the CPU when they are built. The others
            get their copies, or their parts of them, from it when the run starts.
        gradient_checkpointing: whether blocks keep no activations and are computed again in the backward pass: a third
            more arithmetic in what is differentiated, for the memory of one block; networks of diffusers only.
        seed: of all noise; set by seed_everything on the command line.

    Raises:
        ValueError: an argument is out of its range, networks do not fit each other, or the objective lacks what it
            needs.
    """

    frozen_prefixes = ("teacher.", "guide.", "frozen.")
    _real_side: tuple[Any, Moments] | None = None  # the held-out data that it is of, and its moments

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
        instance_noise: float | Schedule = 0.0,
        pairs: str | None = None,
        guidance: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: Denoiser | str | None = None,
        fake_guidance: float = 1.0,
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
        gradient_checkpointing: bool = False,
        start: Start = "sigma",
        seed: int = 0,
    ) -> None:
        super().__init__(seed, gradient_clip, accumulate, skip_nonfinite)
        check_choices(turn, discriminator, fake_noise_levels, fake_label_dropout, reuse_generated)
        check_numbers(fake_updates_per_student, fake_score_warmup, fake_label_dropout=fake_label_dropout)
        check_needs(objective, discriminator, pairs, r1_weight, r1_step)
        check_instance_noise(instance_noise, objective)
        self.objective, self.levels, needs = objective, check_levels(sigma_init, renoise_levels), objective.needs
        self.turn_schedule = TurnSchedule(turn, fake_updates_per_student, fake_score_warmup)
        self.reads = discriminator if needs.discriminator else "none"
        self.teacher_source, dtype = described_source(teacher), check_stored(teacher_dtype, self.reads, r1_weight)
        self.student_optimizer, self.fake_score_optimizer = student_optimizer, fake_score_optimizer
        self.guidance_facts = guidance_facts(guidance, guidance_interval, guide)
        self.fake_guidance, self.fake_label_dropout, self.start = fake_guidance, fake_label_dropout, check_start(start)
        self.discriminator_lr, self.imitation, self.reuse_generated = discriminator_lr, imitation, reuse_generated
        self.r1_weight, self.r1_step, self.instance_noise = r1_weight, r1_step, instance_noise
        with start_at_rank_0(self, meta_start):
            loaded = teacher_model(teacher)
            self._keep_teacher(loaded, dtype)
            with_fake = needs.fake_score != "nothing" or self.reads == "fake_score"
            self.student, self.fake_score = learners(loaded.denoiser, student, fake_score, with_fake)
            check_guidance(guidance, fake_guidance, fake_label_dropout, self.fake_score)
            check_imitation(imitation, self.fake_score, self.student)
            self.frozen = nn.ModuleList(objective.networks()).requires_grad_(False).eval()
            self.ema, self.teacher_facts = EMA(self.student, ema_decay), loaded.facts
            self.sigma_data = known_sigma_data(sigma_data, self.fake_score or self.student, loaded.facts)
            self.guidance = teacher_guidance(guidance, guidance_interval, guide, self.teacher, dtype)
            checkpoint_blocks((self.teacher, self.student, self.fake_score) if gradient_checkpointing else ())
            self._keep_to_path(noise_levels, fake_noise_levels)
            self.pairs = None if pairs is None else fitting_pairs(pairs, self.student, self.guidance)
            self.ratio = self._ratio(ratio_bins, ratio_decay) if needs.discriminator else None

    def _keep_teacher(self, loaded: GenerativeModel, dtype: torch.dtype) -> None:
        self.teacher = copy.deepcopy(loaded.denoiser).requires_grad_(False).eval().hold_in(dtype)
        self._teacher_grid, self._teacher_sampler = loaded.sigmas, loaded.sampler
        self._decoder, self._teacher_start = loaded.decoder, loaded.start
        self.anchor = Anchor.of(self.objective, loaded, self.levels, self.start)

    def _keep_to_path(self, noise_levels: NoiseLevels, fake_noise_levels: NoiseLevels | None) -> None:
        check_one_step(self.objective, self.levels)
        check_on_path(self.levels, self.student)
        self.guide = Guidance.of(self.guidance).guide
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
        model.decoder = self._decoder
        return model

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
        if isinstance(data, GenerativeDataModule):
            self.objective.prepare(data)
            self.frozen.requires_grad_(False).eval()  # what was fitted just now, too

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        groups: list[dict[str, Any]] = (
            [] if self.fake_score is None else [{"params": list(self.fake_score.parameters())}]
        )
        if self.ratio is not None:
            group: dict[str, Any] = {"params": list(self.ratio.parameters())}
            groups.append(group if self.discriminator_lr is None else {**group, "lr": self.discriminator_lr})
        return [self.student_optimizer(self.student.parameters()), self.fake_score_optimizer(groups)]

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

    def on_validation_epoch_start(self) -> None:
        """Begin the moments of both sides, which add over batches and ranks; those of the same real side are kept."""
        shape = self.generative_model().sample_shape
        self._sides = PixelMoments(shape, self.device), PixelMoments(shape, self.device)
        self._knows_real = self._real_side is not None and self._real_side[0] == self._validated()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """As many EMA student samples as held-out ones, with their conditions."""
        generated, real = self._sides
        generated.add(self.predict_step(batch, batch_idx))
        if not self._knows_real:
            real.add(batch.x)

    def on_validation_epoch_end(self) -> None:
        """Log a Frechet distance of pixels, without any feature network."""
        generated, real = self._sides
        if not self._knows_real or self._real_side is None:
            self._real_side = self._validated(), real.total()
        distance = pixel_frechet_distance(generated.total(), self._real_side[1], generated.sample_shape)
        self.log("validation/pixel_frechet_distance", distance.float().to(self.device), prog_bar=True, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its conditions."""
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        model = self.generative_model()
        return model.sample(model.latents(len(batch.x), generator), batch.condition)

    def _validated(self) -> tuple[Any, tuple[int | float, ...]]:
        """What the real side is of: the data, and how many batches of it."""
        run = self.trainer
        evaluated = run.num_test_batches if run.testing else run.num_val_batches
        batches = run.num_sanity_val_batches if run.sanity_checking else evaluated
        return getattr(run, "datamodule", None), tuple(batches)
