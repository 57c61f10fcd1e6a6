"""One turn of a distillation: the student generates, networks predict at noised samples, what learns takes a step."""

from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from fdistill.core.distributed import world_size
from fdistill.data import Batch
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.rank_parts import OWN, parts_of
from fdistill.models.adapters import own_parameters
from fdistill.models.condition import Condition, Conditioned
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.vae import Decoder
from fdistill.objectives import Needs, NoisedSamples, Objective, Regression, denoising_loss, discriminator_loss
from fdistill.objectives.base import PredictionLevel, expand, required
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.sampling import Start
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.paths import NoiseRange
from fdistill.theory.schedules import Schedule, value_at
from fdistill.training.anchor import Anchor
from fdistill.training.at_rest import weights_at_rest
from fdistill.training.averaging.ema import EMA
from fdistill.training.base import GenerativeModule, MicroBatch, mean_of
from fdistill.training.discrimination import (
    NoisedInput,
    Prediction,
    Reads,
    evaluate,
    logit_of,
    logits_of_both,
    r1_penalty,
)
from fdistill.training.generation import NoisedBatch, drawn_steps, simulate
from fdistill.training.guard import TurnValues
from fdistill.training.student_gradient import balance, ratio_log, student_gradient
from fdistill.training.turn_schedule import Learners, TurnSchedule

_NOTHING: PredictionLevel = "nothing"


class DistillationTurn(GenerativeModule):
    """What `DistillationModule` does in a turn with the networks and numbers that it was built of.

    A micro-batch goes one way: `_generate` makes its samples and noises them, `_predict` adds what the networks predict
    there, `_student_losses` and `_fake_losses` read that, `_step` moves what learns.
    """

    objective: Objective
    noise_levels: NoiseLevels
    fake_noise_levels: NoiseLevels
    known: NoiseRange
    levels: tuple[float, ...]
    start: Start
    turn_schedule: TurnSchedule
    reads: Reads
    teacher: Denoiser
    student: Denoiser
    fake_score: Denoiser | None
    ratio: RatioEstimator | None
    ema: EMA
    pairs: TeacherPairs | None
    anchor: Anchor | None
    sigma_data: float
    guidance: float | Guidance
    fake_guidance: float | Guidance
    fake_training_guidance: float | Guidance
    projection_guidance: float | Guidance | None
    fake_label_dropout: float
    imitation: float
    reuse_generated: bool
    r1_weight: float
    r1_step: float
    instance_noise: float | Schedule
    images_of: Decoder | None = None
    """What makes images of samples that are latents, for rewards."""
    last_ratio: tuple[Tensor, Tensor, Tensor] | None = None
    """sigma, log ratio and weight h(r) [B] of the last micro-batch that the student learnt from on this rank.

    None where h needs no ratio.
    """
    last_generated: tuple[Tensor, Condition] | None = None
    """Samples and conditions of the last student turn on this rank, for fake turns that reuse them."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        learners = self.turn_schedule.learners(turn)
        parts = [self._learn(batch, part, learners) for part in self.micro_batches(len(batch.x))]
        losses, log = mean_of([part[0] for part in parts]), mean_of([part[1] for part in parts])
        norms = self._step(losses, learners, TurnValues.joined([part[2] for part in parts]))
        if norms is None:
            return
        fresh = [part[3] for part in parts if part[3] is not None]
        if self.reuse_generated and fresh:
            x, conditions = zip(*fresh, strict=True)
            self.last_generated = torch.cat(x), Condition.cat(conditions)
        if learners.student:
            self._follow_student(turn)
        if self.is_logging_turn(turn):
            found = {f"grad_norm/{name}": norm for name, norm in norms.items()} | balance(log)
            self.write_log({**losses, **log, **found}, turn)

    def _learn(
        self, batch: Batch, part: MicroBatch, learners: Learners
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], TurnValues, tuple[Tensor, Condition] | None]:
        """Leave the gradients of a micro-batch in the networks.

        Returns:
            Its losses, numbers for the loggers, what was computed of its samples, and these with their conditions where
            they are new.
        """
        objective = self.objective.at(self.updates)
        needs = objective.needs if learners.student else Needs()
        noised = self._generate(batch, part, learners.student, needs.input_gradient)
        noised = self._predict(noised, needs, learners)
        losses: dict[str, Tensor] = {}
        log: dict[str, Tensor] = {}
        if learners.student:
            descent, losses, log = self._student_losses(noised, objective)
        if learners.fake:
            fake_losses = self._fake_losses(batch, noised)
            self.backward_share(cast(Tensor, sum(fake_losses.values())))
            losses |= fake_losses
        if learners.student:
            self.backward_share(descent)
        fresh = None if noised.latents is None else (noised.x.detach(), noised.condition)
        return losses, log, noised.values(), fresh

    def _generate(
        self, batch: Batch, part: MicroBatch, student_learns: bool, input_gradient: bool = False
    ) -> NoisedBatch:
        """Samples of these rows, noised; the noise is drawn for all, so that no row's depends on how they are split."""
        rows, generator = part.rows, part.whole
        condition = batch.condition.only(self.student.takes)
        latents = old = dropped = first = None
        if not student_learns and self._can_reuse(len(batch.x)):
            old, condition = cast("tuple[Tensor, Condition]", self.last_generated)
        else:
            steps = drawn_steps(self.seed, self.global_step, len(self.levels), self.least_steps())
            latents = [self.normal(batch.x.shape, generator)[rows] for _ in range(steps)]
        levels = self.noise_levels if student_learns else self.fake_noise_levels
        sigma = levels.sample(len(batch.x), generator, self.device)[rows]
        noise = self.normal(batch.x.shape, generator)[rows]
        if self.fake_label_dropout and not student_learns:
            dropped = (torch.rand(len(batch.x), generator=generator, device=self.device) < self.fake_label_dropout)[
                rows
            ]
        condition = condition.rows(rows)
        if latents is None:
            x = cast(Tensor, old)[rows]
        else:
            alone = int(student_learns and self.least_steps() > 1)  # steps that learn by themselves
            if alone:
                first = simulate(self.student, latents[:1], self.levels, condition, True, self.start)
            later = (latents[alone:], self.levels[alone:], condition, student_learns, self.start)
            x = simulate(self.student, *later, None if first is None else first.detach())
        leaf = x.detach().requires_grad_(student_learns)
        x_t = (leaf if input_gradient else leaf.detach()) + expand(sigma, x) * noise
        return NoisedBatch(part, x, leaf, x_t, sigma, condition, dropped, latents[0] if latents else None, first)

    def least_steps(self) -> int:
        """Of the student in a turn: 2 while its first one has a loss of its own."""
        return 2 if self.objective.at(self.updates).needs.anchor else 1

    def _can_reuse(self, n: int) -> bool:
        return self.reuse_generated and self.last_generated is not None and len(self.last_generated[0]) == n

    def _predict(self, noised: NoisedBatch, needs: Needs, learners: Learners) -> NoisedBatch:
        """Add only what this turn reads: features for the discriminator, values for student and fake score.

        Where the fake side alone learns, features of the teacher wait for those of real samples, to be of one batch.
        """
        at = NoisedInput(noised.x_t, noised.sigma, noised.condition)
        at_fake = at._replace(condition=self._without_dropped(noised.condition, noised.dropped))
        teacher = fake_score = projected = Prediction()
        discriminated, features = None, dict.fromkeys(("teacher", "fake_score"), _NOTHING)
        if self.ratio is not None and (needs.discriminator or learners.fake):
            discriminated = self._discriminated(at_fake if self.reads == "fake_score" else at, noised.part)
            features[self.reads] = "gradient" if needs.logit else "value"
        if needs.teacher != "nothing" or needs.discriminator:
            teacher = evaluate(
                self.teacher, at, needs.teacher, features["teacher"], self.guidance, features_at=discriminated
            )
        if self.fake_score is not None:
            value: PredictionLevel = "value" if learners.fake and needs.fake_score == "nothing" else needs.fake_score
            guidance = self.fake_training_guidance if learners.fake else self.fake_guidance
            fake_score = evaluate(
                self.fake_score, at_fake, value, features["fake_score"], guidance, learners.fake, discriminated
            )
            if self.projection_guidance is not None and needs.fake_score != "nothing":
                projected = evaluate(self.fake_score, at_fake, needs.fake_score, guidance=self.projection_guidance)
        return noised._replace(
            discriminated=discriminated, teacher=teacher, fake_score=fake_score, projected=projected.denoised
        )

    def _discriminated(self, at: NoisedInput, part: MicroBatch) -> NoisedInput:
        """What the discriminator sees: the input with the instance noise of this update."""
        return at.with_instance_noise(value_at(self.instance_noise, self.updates), part.own, self.known.high)

    def _student_losses(
        self, noised: NoisedBatch, objective: Objective
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The scalar that the student descends, its terms, and numbers for the loggers."""
        at, log = self._noised_samples(noised, objective.needs)
        regression_x = None
        if objective.needs.pairs:
            latents, target, condition = cast(TeacherPairs, self.pairs).draw(len(at.x), noised.part.own)
            regression_x = simulate(self.student, [latents], self.levels, condition, True, self.start)
            at = at._replace(regression=Regression(regression_x.detach().requires_grad_(), target))
        if noised.first is not None:
            latents, anchor = required(noised.latents), required(self.anchor)
            target = anchor(self.teacher, latents, noised.condition, self.guidance)
            at = at._replace(first=Regression(noised.first.detach().requires_grad_(), target))
        loss = objective.loss(at)
        gradient = student_gradient(loss, at)
        log |= gradient.log
        self.last_ratio = None
        if loss.sample_weight is not None:
            log_ratio = required(at.log_ratio)
            self.last_ratio = (at.sigma, log_ratio, loss.sample_weight)
            log |= ratio_log(loss.sample_weight, log_ratio)
        descent = _descent(noised.x, gradient.x) + _descent(regression_x, gradient.regression)
        descent = descent + _descent(noised.first, gradient.first)
        return cast(Tensor, descent), gradient.losses, log

    def _noised_samples(self, noised: NoisedBatch, needs: Needs) -> tuple[NoisedSamples, dict[str, Tensor]]:
        """What the objective reads of the batch; numbers for the loggers."""
        at = NoisedSamples(noised.leaf, noised.x_t, noised.sigma, self.sigma_data, noised.condition)
        at = at._replace(decoder=self.images_of)
        at = at._replace(teacher=noised.teacher.denoised, update=self.updates, generator=noised.part.own)
        if needs.fake_score != "nothing":
            value = required(noised.fake_score.denoised)
            at = at._replace(fake_score=value if needs.fake_score == "gradient" else value.detach())
            at = at._replace(projected=noised.projected)
        if needs.latents:
            at = at._replace(latents=noised.latents)
        log: dict[str, Tensor] = {}
        if needs.discriminator:
            ratio = cast(RatioEstimator, self.ratio)
            half = (noised.fake_score if self.reads == "fake_score" else noised.teacher).half
            with torch.set_grad_enabled(needs.logit), weights_at_rest(ratio):
                logit = ratio.logit(half, *required(noised.discriminated))
            if needs.ratio:
                log_ratio = ratio.log_ratio(logit, at.sigma, continues=noised.part.rows.start > 0)
                at, log["ratio/clipped_fraction"] = at._replace(log_ratio=log_ratio), ratio.clipped_fraction(logit)
            if needs.logit:
                at = at._replace(logit=logit.float())  # bf16 under mixed precision
        return at, log

    def _fake_losses(self, batch: Batch, noised: NoisedBatch) -> dict[str, Tensor]:
        """Denoising on the student's samples; discrimination of them from real ones at the same noise levels."""
        losses: dict[str, Tensor] = {}
        if self.fake_score is not None:
            denoised = required(noised.fake_score.denoised)
            losses["loss/fake_score"] = denoising_loss(denoised, noised.x, noised.sigma, self.sigma_data)
        ratio = self.ratio
        if ratio is None:
            return losses
        fake, real, learns = required(noised.discriminated), self._real(batch, noised), self.reads == "fake_score"
        source, half = self._feature_source(), (noised.fake_score if learns else noised.teacher).half
        if self.reads == "teacher" and half is None:
            logits = logits_of_both(ratio, self.teacher, fake, real)
        else:
            half = half.detach_features() if self.reads == "teacher" and half is not None else half
            of_fake = ratio.logit(half, fake.x_t.detach(), fake.sigma, fake.condition)
            logits = of_fake, logit_of(ratio, source, real, learns)
        losses["loss/discriminator"] = discriminator_loss(*logits)
        if self.r1_weight:
            penalty = r1_penalty(
                lambda x: logit_of(ratio, source, real._replace(x_t=x), learns),
                real,
                self.sigma_data,
                noised.part.own,
                self.r1_step,
            )
            losses["loss/r1"] = self.r1_weight / 2 * penalty
        return losses

    def _real(self, batch: Batch, noised: NoisedBatch) -> NoisedInput:
        """Samples of the data at the noise levels of the generated ones, of which as many lack their condition."""
        rows = noised.part.rows
        condition = batch.condition.only(self.student.takes).rows(rows)
        if self.reads == "fake_score":
            condition = self._without_dropped(condition, noised.dropped)
        x = batch.x[rows]
        x_t = x + expand(noised.sigma, x) * self.normal(batch.x.shape, noised.part.whole)[rows]
        return self._discriminated(NoisedInput(x_t, noised.sigma, condition), noised.part)

    def _without_dropped(self, condition: Condition, dropped: Tensor | None) -> Condition:
        """The condition, with the fake score's "no condition" where it was dropped."""
        if dropped is None:
            return condition
        return condition.where(dropped, cast(Denoiser, self.fake_score).null(1, self.device))

    def _feature_source(self) -> Denoiser | None:
        """The network whose features the discriminator reads."""
        return {"teacher": self.teacher, "fake_score": self.fake_score}.get(self.reads)

    def logit(self, x_t: Tensor, sigma: Tensor, condition: Conditioned) -> Tensor:
        """The discriminator's logit [B] at any noised samples; its optimum is the log density ratio ln p_t/q_t.

        With instance noise tau it has learnt at levels of at least tau.
        """
        at = NoisedInput(x_t, sigma, Condition.of(condition, self.student.takes))
        return logit_of(required(self.ratio), self._feature_source(), at, self.reads == "fake_score")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the samples that this rank's next fake turns reuse."""
        super().on_save_checkpoint(checkpoint)
        if self.reuse_generated and self.last_generated is not None:
            x, condition = self.last_generated
            own = {f"generated/{name}": value.cpu() for name, value in {"x": x, **condition}.items()}
            checkpoint.setdefault(OWN, {}).update(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's samples; where a rank had none, all generate their own: sharded ranks do so together."""
        super().on_load_checkpoint(checkpoint)
        parts = parts_of(checkpoint)
        mine = parts.of(self.global_rank, "generated/") if world_size() <= parts.ranks else {}
        if mine:
            self.last_generated = mine.pop("x"), Condition(mine)

    def _step(self, losses: dict[str, Tensor], learners: Learners, samples: TurnValues) -> dict[str, Tensor] | None:
        found: Any = self.optimizers()  # one alone comes without a list
        student, *fake = cast("list[LightningOptimizer]", found if isinstance(found, list | tuple) else [found])
        fake_side: dict[str, nn.Module | None] = (
            {"fake_score": self.fake_score, "discriminator": self.ratio} if learners.fake else {}
        )
        networks: dict[str, nn.Module] = {"student": self.student} if learners.student else {}
        networks |= {name: network for name, network in fake_side.items() if network is not None}
        moving = [student] * learners.student + fake * learners.fake
        return self.guarded_step(losses, networks, moving, samples)

    @torch.no_grad()
    def _follow_student(self, turn: int) -> None:
        """What happens after each student update: its average, and the fake score that imitates it."""
        self.ema.update(self.student, self.updates_after(turn))
        if self.imitation < 1:
            fake: list[Tensor] = [*own_parameters(cast(Denoiser, self.fake_score)).values()]
            student: list[Tensor] = [*own_parameters(self.student).values()]
            torch._foreach_lerp_(fake, student, 1 - self.imitation)


def _descent(x: Tensor | None, gradient: Tensor | None) -> Tensor | float:
    """A number whose gradient with respect to the weights behind x is that of a loss with this gradient at x."""
    return 0.0 if x is None or gradient is None else (x * gradient).sum()
