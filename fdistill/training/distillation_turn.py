"""One turn of a distillation: the student generates, the networks say what they are asked, and what learns steps."""

from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from fdistill.data import Batch
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.rank_parts import OWN, parts_of
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.objectives import Needs, NoisedSamples, Objective, Regression, denoising_loss, discriminator_loss
from fdistill.objectives.base import Asked, asked_for
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.sampling import Start
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.paths import NoiseRange
from fdistill.theory.schedules import Schedule, value_at
from fdistill.training.at_rest import weights_at_rest
from fdistill.training.averaging.ema import EMA
from fdistill.training.base import MicroBatch, mean_of
from fdistill.training.consult import Opinion
from fdistill.training.discrimination import (
    Reads,
    Shown,
    consult_and_show,
    logit_of,
    logits_of_both,
    r1_penalty,
    shown,
)
from fdistill.training.generation import Generated, drawn_steps, dropped_labels, simulate
from fdistill.training.guard import Samples
from fdistill.training.rhythm import Rhythm
from fdistill.training.student_gradient import balance, ratio_log, student_gradient
from fdistill.training.student_validation import StudentValidation


class DistillationTurn(StudentValidation):
    """What `DistillationModule` does in a turn with the networks and numbers that it was built of."""

    objective: Objective
    noise_levels: NoiseLevels
    fake_noise_levels: NoiseLevels
    known: NoiseRange
    levels: tuple[float, ...]
    start: Start
    rhythm: Rhythm
    reads: Reads
    teacher: Denoiser
    student: Denoiser
    fake_score: Denoiser | None
    ratio: RatioEstimator | None
    ema: EMA
    pairs: TeacherPairs | None
    sigma_data: float
    guidance: float | Guidance
    fake_guidance: float
    fake_label_dropout: float
    imitation: float
    reuse_generated: bool
    r1_weight: float
    r1_step: float
    instance_noise: float | Schedule
    last_ratio: tuple[Tensor, Tensor, Tensor] | None = None
    """sigma, log ratio and weight h(r) [B] of the last micro-batch that the student learnt from on this rank.

    None where h needs no ratio.
    """
    last_generated: tuple[Tensor, Tensor | None] | None = None
    """Samples and labels of the last student turn on this rank, for fake turns that reuse them."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        student_learns, fake_learns = self.rhythm.learns(turn)
        self._fresh: list[tuple[Tensor, Tensor | None]] = []
        parts = [self._learn(batch, part, student_learns, fake_learns) for part in self.micro_batches(len(batch.x))]
        losses, log = mean_of([part[0] for part in parts]), mean_of([part[1] for part in parts])
        norms = self._step(losses, student_learns, fake_learns, Samples.joined([part[2] for part in parts]))
        if norms is None:
            return
        if self.reuse_generated and self._fresh:
            x, labels = zip(*self._fresh, strict=True)
            self.last_generated = torch.cat(x), None if labels[0] is None else torch.cat(labels)
        if student_learns:
            self._follow_student(turn)
        if self.is_logging_turn(turn):
            found = {f"grad_norm/{name}": norm for name, norm in norms.items()} | balance(log)
            self.write_log({**losses, **log, **found}, turn)

    def _learn(
        self, batch: Batch, part: MicroBatch, student_learns: bool, fake_learns: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Samples]:
        """Losses of a micro-batch, whose gradients are in the networks now, numbers for the loggers, its samples."""
        objective = self.objective.at(self.updates)
        needs = objective.needs if student_learns else Needs()
        generator = part.own
        generated = self._generate(batch, part.whole, student_learns, part.rows)
        if generated.latents is not None:
            self._fresh.append((generated.x.detach(), generated.labels))
        x = generated.x.detach().requires_grad_(student_learns)
        x_t = generated.noised(x if needs.input_gradient else x.detach())
        reads = self.ratio is not None and (needs.discriminator or fake_learns)
        seen = self._shown(x_t, generated.sigma, generator) if reads else Shown(x_t, generated.sigma)
        teacher = self._ask_teacher(x_t, seen, generated, needs, fake_learns)
        fake = self._ask_fake_score(x_t, seen, generated, needs, fake_learns)
        losses: dict[str, Tensor] = {}
        log: dict[str, Tensor] = {}
        if student_learns:
            regression_x, at, log = self._noised_samples(x, x_t, seen, generated, teacher, fake, needs, part)
            loss = objective.loss(at)
            gradient = student_gradient(loss, at)
            losses |= gradient.losses
            log |= gradient.log
            if loss.sample_weight is not None:
                log_ratio = asked_for(at.log_ratio)
                self.last_ratio = (at.sigma, log_ratio, loss.sample_weight)
                log |= ratio_log(loss.sample_weight, log_ratio)
        if fake_learns:
            fake_losses = self._fake_losses(batch, generated, seen, teacher, fake, part)
            self.backward_share(cast(Tensor, sum(fake_losses.values())))
            losses |= fake_losses
        if student_learns:
            descent = _descent(generated.x, gradient.x) + _descent(regression_x, gradient.regression)
            self.backward_share(cast(Tensor, descent))
        values = [v.detach() for v in (x, x_t, teacher.denoised, fake.denoised) if v is not None]  # the graph may go
        return losses, log, Samples(generated.sigma, values)

    def _generate(
        self, batch: Batch, generator: torch.Generator, student_learns: bool, rows: slice = slice(None)
    ) -> Generated:
        """Samples of these rows; the noise is drawn for all, so that no row's depends on how they are split."""
        labels = batch.labels if self.student.num_classes else None
        latents: Any = None
        old: Any = None
        if not student_learns and self._can_reuse(len(batch.x)):
            old, labels = cast("tuple[Tensor, Tensor | None]", self.last_generated)
        else:
            steps = drawn_steps(self.seed, self.global_step, len(self.levels))
            latents = [self.normal(batch.x.shape, generator)[rows] for _ in range(steps)]
        levels = self.noise_levels if student_learns else self.fake_noise_levels
        sigma = levels.sample(len(batch.x), generator, self.device)[rows]
        noise, fake_labels = self.normal(batch.x.shape, generator)[rows], labels
        if self.fake_label_dropout and not student_learns:
            no_class = cast(Denoiser, self.fake_score).num_classes
            fake_labels = dropped_labels(cast(Tensor, labels), no_class, self.fake_label_dropout, generator)
        if labels is not None and fake_labels is not None:
            labels, fake_labels = labels[rows], fake_labels[rows]
        if latents is None:
            return Generated(old[rows], noise, sigma, labels, fake_labels)
        x = simulate(self.student, latents, self.levels, labels, student_learns, self.start)
        return Generated(x, noise, sigma, labels, fake_labels, latents[0])

    def _can_reuse(self, n: int) -> bool:
        return self.reuse_generated and self.last_generated is not None and len(self.last_generated[0]) == n

    def _shown(self, x_t: Tensor, sigma: Tensor, generator: torch.Generator) -> Shown:
        return shown(x_t, sigma, value_at(self.instance_noise, self.updates), generator, self.known.high)

    def _ask_teacher(self, x_t: Tensor, seen: Shown, generated: Generated, needs: Needs, fake_learns: bool) -> Opinion:
        """Only what this turn reads: features for the discriminator, the guided value for the student.

        Where the fake side alone learns, features wait for those of real samples, to be read in one batch.
        """
        features = self._features_of("teacher", needs, fake_learns)
        if needs.teacher == "nothing" and not needs.discriminator:
            return Opinion()
        sigma, labels = generated.sigma, generated.labels
        return consult_and_show(self.teacher, x_t, sigma, seen, labels, needs.teacher, features, self.guidance)

    def _ask_fake_score(
        self, x_t: Tensor, seen: Shown, generated: Generated, needs: Needs, fake_learns: bool
    ) -> Opinion:
        """The value that it learns with and the student reads; features where the discriminator reads them."""
        if self.fake_score is None:
            return Opinion()
        features = self._features_of("fake_score", needs, fake_learns)
        value: Asked = "value" if fake_learns and needs.fake_score == "nothing" else needs.fake_score
        guidance = 1.0 if fake_learns else self.fake_guidance
        sigma, labels = generated.sigma, generated.fake_labels
        return consult_and_show(self.fake_score, x_t, sigma, seen, labels, value, features, guidance, fake_learns)

    def _features_of(self, network: str, needs: Needs, fake_learns: bool) -> Asked:
        if self.reads != network or not (needs.discriminator or fake_learns):
            return "nothing"
        return "gradient" if needs.logit else "value"

    def _noised_samples(
        self,
        x: Tensor,
        x_t: Tensor,
        seen: Shown,
        generated: Generated,
        teacher: Opinion,
        fake: Opinion,
        needs: Needs,
        part: MicroBatch,
    ) -> tuple[Tensor | None, NoisedSamples, dict[str, Tensor]]:
        """The student's samples of pairs, with its graph; what the objective asked for; numbers for the loggers."""
        at = NoisedSamples(x, x_t, generated.sigma, self.sigma_data, generated.labels)
        if needs.teacher != "nothing":
            at = at._replace(teacher=teacher.denoised)
        if needs.fake_score != "nothing":
            value = cast(Tensor, fake.denoised)
            at = at._replace(fake_score=value if needs.fake_score == "gradient" else value.detach())
        self.last_ratio, log = None, {}
        if needs.discriminator:
            ratio = cast(RatioEstimator, self.ratio)
            half = fake.half if self.reads == "fake_score" else teacher.half
            with torch.set_grad_enabled(needs.logit), weights_at_rest(ratio):
                logit = ratio.logit(half, *seen, at.labels)
            if needs.ratio:
                at = at._replace(log_ratio=ratio.log_ratio(logit, at.sigma, continues=part.rows.start > 0))
                log["ratio/clipped_fraction"] = ratio.clipped_fraction(logit)
            if needs.logit:
                at = at._replace(logit=logit.float())  # bf16 under mixed precision
        regression_x = None
        if needs.pairs:
            latents, target, labels = cast(TeacherPairs, self.pairs).draw(len(x), part.own)
            regression_x = simulate(self.student, [latents], self.levels, labels, True, self.start)
            at = at._replace(regression=Regression(regression_x.detach().requires_grad_(), target))
        if needs.latents:
            at = at._replace(latents=generated.latents)
        return regression_x, at._replace(update=self.updates, generator=part.own), log

    def _fake_losses(
        self,
        batch: Batch,
        generated: Generated,
        seen: Shown,
        teacher: Opinion,
        fake: Opinion,
        part: MicroBatch,
    ) -> dict[str, Tensor]:
        """Denoising on the student's samples; discrimination of them from real ones at the same noise levels."""
        losses, sigma = {}, generated.sigma
        if self.fake_score is not None:
            denoised = cast(Tensor, fake.denoised)
            losses["loss/fake_score"] = denoising_loss(denoised, generated.x, sigma, self.sigma_data)
        if self.ratio is None:
            return losses
        labels = generated.fake_labels if self.reads == "fake_score" else generated.labels
        noise = self.normal(batch.x.shape, part.whole)[part.rows]
        real, level = self._shown(generated._replace(noise=noise).noised(batch.x[part.rows]), sigma, part.own)
        real_labels = labels
        if self.reuse_generated and labels is not None:  # of this batch, and "no class" where that is asked
            own = labels.eq(cast(Tensor, generated.labels))
            real_labels = torch.where(own, batch.labels[part.rows], labels)
        if self.reads == "teacher" and teacher.half is None:
            logits = logits_of_both(self.ratio, self.teacher, (seen.x_t, real), level, (labels, real_labels))
        else:
            half = {"teacher": teacher, "fake_score": fake}.get(self.reads, Opinion()).half
            half = half.detach_features() if self.reads == "teacher" and half is not None else half
            logits = self.ratio.logit(half, seen.x_t.detach(), level, labels), self.logit(real, level, real_labels)
        losses["loss/discriminator"] = discriminator_loss(*logits)
        if self.r1_weight:
            penalty = r1_penalty(
                lambda x: self.logit(x, level, real_labels), real, level, self.sigma_data, part.own, self.r1_step
            )
            losses["loss/r1"] = self.r1_weight / 2 * penalty
        return losses

    def logit(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The discriminator's logit [B] at any noised samples; its optimum is the log density ratio ln p_t/q_t.

        With instance noise tau it has learnt at levels of at least tau.
        """
        source = {"teacher": self.teacher, "fake_score": self.fake_score}.get(self.reads)
        return logit_of(
            cast(RatioEstimator, self.ratio), source, x_t, sigma, labels, source_learns=self.reads == "fake_score"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the samples that this rank's next fake turns reuse."""
        super().on_save_checkpoint(checkpoint)
        if self.reuse_generated and self.last_generated is not None:
            named = zip(("x", "labels"), self.last_generated, strict=True)
            own = {f"generated/{name}": value.cpu() for name, value in named if value is not None}
            checkpoint.setdefault(OWN, {}).update(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's samples; a rank that had none generates its own."""
        super().on_load_checkpoint(checkpoint)
        parts = parts_of(checkpoint)
        mine = parts.of(self.global_rank, "generated/") if self.global_rank < parts.ranks else {}
        if mine:
            self.last_generated = mine["x"], mine.get("labels")

    def _step(
        self, losses: dict[str, Tensor], student_learns: bool, fake_learns: bool, samples: Samples
    ) -> dict[str, Tensor] | None:
        student_optimizer, fake_optimizer = cast("list[LightningOptimizer]", self.optimizers())
        fake_side: dict[str, nn.Module | None] = (
            {"fake_score": self.fake_score, "discriminator": self.ratio} if fake_learns else {}
        )
        networks: dict[str, nn.Module] = {"student": self.student} if student_learns else {}
        networks |= {name: network for name, network in fake_side.items() if network is not None}
        moving = [student_optimizer] * student_learns + [fake_optimizer] * fake_learns
        return self.guarded_step(losses, networks, moving, samples)

    @torch.no_grad()
    def _follow_student(self, turn: int) -> None:
        """What happens after each student update: its average, and the fake score that imitates it."""
        self.ema.update(self.student, self.updates_after(turn))
        if self.imitation < 1:
            fake: list[Tensor] = list(cast(Denoiser, self.fake_score).parameters())
            student: list[Tensor] = list(self.student.parameters())
            torch._foreach_lerp_(fake, student, 1 - self.imitation)


def _descent(x: Tensor | None, gradient: Tensor | None) -> Tensor | float:
    """A number whose gradient with respect to the weights behind x is that of a loss with this gradient at x."""
    return 0.0 if x is None or gradient is None else (x * gradient).sum()
