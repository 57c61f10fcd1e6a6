"""Tuning a teacher by reinforcement: it samples, its samples are judged, and good ones become more probable."""

import dataclasses
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from fdistill.core.distributed import gather_rows, together
from fdistill.core.random import VALIDATION, generator_for
from fdistill.data import Batch, GenerativeDataModule
from fdistill.io.stock_pipeline import PIPELINE
from fdistill.models.adapters import own_parameters
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import train_without_dropout
from fdistill.objectives.advantages import RunningAdvantages, condition_keys
from fdistill.objectives.reward_algorithms import DiffusionNFT, Pairs, PolicyGradient, RewardAlgorithm
from fdistill.objectives.rewards import Reward
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid
from fdistill.training.argument_checks import check_renoised
from fdistill.training.averaging.ema import EMA
from fdistill.training.base import GenerativeModule
from fdistill.training.guard import TurnValues
from fdistill.training.initial_networks import described_source, tunable_model
from fdistill.training.judging import judged
from fdistill.training.noise_range import levels_on_path
from fdistill.training.policies import follow, old_policy, policy_and_reference
from fdistill.training.roles import FullCopies, Roles, check_same_roles, write_roles
from fdistill.training.rollout import Rollout, roll_out

_NOISE, _ORDER, _LEVELS = range(3)  # streams of a turn
_ADVANTAGES = "advantages"  # key of a checkpoint


class RewardTuningModule(GenerativeModule):
    """A teacher learns to make samples of larger reward; its EMA is the tuned teacher, sampled as it was before.

    A turn is a rollout of `algorithm.group` samples of each condition of a batch, and `algorithm.updates` optimiser
    steps on its shuffled (sample, step) pairs, of which the last is counted. The data give conditions alone: samples
    of a batch are not read. Advantages compare samples of equal conditions on all ranks.
    """

    frozen_prefixes = ("reference.", "reward.")  # a guide samples the tuned teacher, and is saved with it

    def __init__(
        self,
        teacher: Denoiser | str,
        reward: Reward,
        algorithm: RewardAlgorithm,
        optimizer: OptimizerCallable,
        grid: SamplingGrid | None = None,
        reference: Denoiser | str | None = None,
        at_once: int = 256,
        ema_decay: float = 0.9,
        gradient_clip: float = 1.0,
        skip_nonfinite: int = 0,
        roles: Roles | None = None,
        seed: int = 0,
    ) -> None:
        """Args:
        teacher: a run checkpoint or exported folder of a teacher, a denoiser, or in Python a GenerativeModel. Its
            guidance is that of the rollouts, too. Or a student of several steps, which is tuned with eta inf.
        reward: what a sample is worth, of decoded images in [-1, 1].
        algorithm: how it learns from that (`fdistill.objectives.reward_algorithms`).
        optimizer: class_path and init_args of the optimiser.
        grid: noise levels of the rollouts; the teacher's own where not given. The tuned teacher keeps its own.
        reference: what the divergence of `algorithm.kl_weight` is measured from, a denoiser or checkpoint of the same
            network; None for the teacher as it was, which is the base of adapters.
        at_once: samples of a rollout, and pairs of an update, that are evaluated together: their memory.
        ema_decay: of the weights' moving average, in [0, 1).
        gradient_clip: largest gradient norm of a step.
        skip_nonfinite: turns in a row with a NaN or an infinity that are skipped and counted, where a rollout has one
            update; 0 stops at the first.
        roles: what learns: all of a copy of the teacher where not given, or adapters on its weights (`SharedBase`).
        seed: of all noise; set by seed_everything on the command line.
        """
        super().__init__(seed, gradient_clip, 1, skip_nonfinite)
        if at_once < 1:
            raise ValueError(f"at_once is a number of samples that are evaluated together, >= 1: got {at_once}")
        if skip_nonfinite and algorithm.updates > 1:
            raise ValueError(
                "a turn is skipped whole, and with several updates some have moved before one breaks: expected "
                f"skip_nonfinite 0, got {skip_nonfinite} with updates {algorithm.updates}"
            )
        loaded = tunable_model(teacher)
        self.teacher_source, self.roles = described_source(teacher), roles or FullCopies()
        self.denoiser, self.reference = policy_and_reference(
            self.roles, loaded.denoiser, reference, algorithm.kl_weight
        )
        self.ema = EMA(self.denoiser, ema_decay)
        self._tuned = dataclasses.replace(loaded, denoiser=self.ema.average)  # sampled as the teacher was
        self.old = old_policy(self.denoiser) if isinstance(algorithm, DiffusionNFT) else None
        self.guide = Guidance.of(loaded.guidance).guide
        reward.check_takes(self.denoiser.takes)
        self.reward, self.algorithm, self.optimizer, self.at_once = reward, algorithm, optimizer, at_once
        self.levels = (loaded.sigmas if grid is None else grid.levels()).tolist()
        self.levels += [0.0] if loaded.kind == "student" else []
        known = self.denoiser.noise_range
        known.check("each level of a rollout's grid", [level for level in self.levels if level > 0])
        self.steps = sum(level > 0 for level in self.levels[1:])  # that end above zero noise
        algorithm.check(self.steps)
        if loaded.kind == "student":
            check_renoised(algorithm, self.steps, grid)
        if isinstance(algorithm, DiffusionNFT):
            self.noise_levels = levels_on_path("noise_levels", algorithm.noise_levels, known)
        self._advantages = algorithm.advantages()
        self._prepared = False

    def generative_model(self) -> GenerativeModel:
        before = self._tuned.facts
        kept = {name: before[name] for name in ("sigma_data", PIPELINE) if name in before}
        facts = {**kept, **self.run_facts(), "teacher": self.teacher_source}
        facts |= {"reward": self.reward.spec(), "algorithm": self.algorithm.spec()}
        return dataclasses.replace(self._tuned, facts=facts, decoder=self._decoder)

    @property
    def _decoder(self) -> Any:
        """What makes images of latents, on this module's device: the teacher's own, or the data's."""
        data = getattr(getattr(self._trainer, "datamodule", None), "decoder", None)
        decoder = data if self._tuned.decoder is None else self._tuned.decoder
        return None if decoder is None else decoder.to(self.device)

    def setup(self, stage: str) -> None:
        """Check what only the run can tell: the precision of probabilities."""
        super().setup(stage)
        if isinstance(self.algorithm, PolicyGradient) and self.trainer.precision != "32-true":
            raise ValueError(
                "ratios of log-probabilities are smaller than what bfloat16 rounds: expected precision 32-true for a "
                f"policy gradient, got {self.trainer.precision}; DiffusionNFT has no ratios"
            )

    def on_fit_start(self) -> None:
        """Let the reward see the data."""
        self._prepare()

    def on_validation_start(self) -> None:
        """The same, where a run only validates."""
        self._prepare()
        super().on_validation_start()

    def _prepare(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not self._prepared and isinstance(data, GenerativeDataModule):
            self.reward.prepare(data.in_pixels(self.device))
            self.reward.requires_grad_(False).eval()
            self._prepared = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(own_parameters(self.denoiser).values())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        turn = self.global_step
        condition = batch.condition.only(self.denoiser.takes)
        rollout = self._roll_out(len(batch.x), condition, turn)
        advantage, seen = self._judge(rollout, condition, len(batch.x))
        order = torch.randperm(
            self._pairs_of(rollout), generator=generator_for(self.seed, turn, self.global_rank, _ORDER)
        )
        found: dict[str, Tensor] = {}
        updates = order.tensor_split(self.algorithm.updates)
        for update, index in enumerate(updates):
            found, samples = self._descend(rollout, advantage, condition, index, update)
            where = f" in update {update + 1}, after {update} that moved," if update else ""
            terms = {f"{name}{where}": value for name, value in found.items() if name.startswith("loss/")}
            optimizer, counted = cast(LightningOptimizer, self.optimizers()), index is updates[-1]
            norms = self.guarded_step(terms, {f"denoiser{where}": self.denoiser}, [optimizer], samples, counted)
            if norms is None:
                return
            found["grad_norm/denoiser"] = norms[f"denoiser{where}"]
        self.ema.update(self.denoiser, turn)
        if self.old is not None and isinstance(self.algorithm, DiffusionNFT):
            follow(self.old, self.denoiser, self.algorithm.keep_old)
        if self.is_logging_turn(turn):
            self.write_log({**found, **seen}, turn)

    def _roll_out(self, batch_size: int, condition: Condition, turn: int) -> Rollout:
        """`group` samples of each condition of a batch."""
        return self._rolled(batch_size, condition, self.levels, self.algorithm.etas(turn, self.steps))

    def _rolled(self, batch_size: int, condition: Condition, levels: list[float], etas: list[float]) -> Rollout:
        """The same on these levels, by the policy, or by the old one where it makes the samples."""
        policy, guidance = self.old or self.denoiser, Guidance.of(self._tuned.guidance)
        condition = condition.repeat(self.algorithm.group)
        shape = (batch_size * self.algorithm.group, *self.denoiser.sample_shape)
        noise = self.noise_source(_NOISE)

        def denoise(x: Tensor, sigma: float, rows: slice) -> Tensor:
            return guidance(policy, x, sigma, condition.rows(rows))

        latents = self.normal(shape, noise)
        return roll_out(
            denoise, latents, levels, etas, lambda: self.normal(shape, noise), self._tuned.start, self.at_once
        )

    def _judge(self, rollout: Rollout, condition: Condition, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The advantages [N] of this rank's samples, on the CPU, and what is logged of all ranks' rewards."""
        group = self.algorithm.group
        scores, outside = self._scores(rollout.samples, condition.repeat(group))
        keys = condition_keys(condition, batch_size).repeat_interleave(group)
        scores, keys = (gather_rows(value.to(self.device)).cpu() for value in (scores, keys))
        rewards = self.reward.total(scores)
        n = len(rollout.samples)
        mine = slice(self.global_rank * n, (self.global_rank + 1) * n)
        seen = {f"reward/{name}": scores[:, part].mean() for part, name in enumerate(self.reward.parts())}
        seen |= {"reward/std": rewards.std(correction=0), "reward/out_of_range": outside}
        return self._advantages(rewards, keys)[mine], seen

    def _scores(self, samples: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Each part's reward [N, parts], and the share of values outside of an image's range.

        Raises:
            ValueError: on every rank, where a reward of any rank fails.
        """
        try:
            return together(lambda: self._judged(samples, condition))
        except ValueError as error:
            raise ValueError(f"{error}; no weight was changed") from error

    def _judged(self, samples: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The same of this rank alone: ranks may validate different numbers of batches."""
        return judged(self.reward, samples, condition, self._decoder, self.device, self.at_once)

    def _pairs_of(self, rollout: Rollout) -> int:
        """Number of (sample, step) pairs; at least one for each update."""
        columns = self.algorithm.draws if isinstance(self.algorithm, DiffusionNFT) else len(rollout.sigma)
        pairs = len(rollout.samples) * columns
        if pairs < self.algorithm.updates:
            raise ValueError(
                f"each update of a rollout has pairs of its own: expected updates of at most {pairs}, got "
                f"{self.algorithm.updates}"
            )
        return pairs

    def _descend(
        self, rollout: Rollout, advantage: Tensor, condition: Condition, index: Tensor, update: int
    ) -> tuple[dict[str, Tensor], TurnValues]:
        """Add up the gradient of one update's pairs, `at_once` at a time."""
        totals: dict[str, Tensor] = {}
        samples = []
        for number, part in enumerate(index.split(self.at_once)):
            if isinstance(self.algorithm, DiffusionNFT):
                noise = self.noise_source(_LEVELS, update, number)
                pairs = rollout.noised_pairs(part, advantage, condition, self.noise_levels, noise)
            else:
                pairs = rollout.policy_pairs(part, advantage, condition, self.algorithm.updates > 1)
            terms, seen = self._loss(pairs)
            loss = terms["loss/policy"] + self.algorithm.kl_weight * terms.get("loss/kl", 0.0)
            share = len(part) / len(index)
            self.manual_backward(share * loss)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + share * value.detach()
            samples.append(seen)
        return totals, TurnValues.joined(samples)

    def _loss(self, pairs: Pairs) -> tuple[dict[str, Tensor], TurnValues]:
        guidance = Guidance.of(self._tuned.guidance)
        seen = pairs.x, pairs.sigma, pairs.condition
        denoised = guidance(self.denoiser, *seen)
        with torch.no_grad():
            far = self.reference if self.algorithm.kl_weight else None  # a base is there without it, too
            reference = None if far is None else guidance(far, *seen)
            old = None if self.old is None else guidance(self.old, *seen)
        found = self.algorithm.loss(pairs, denoised, reference, old)
        terms = {"loss/policy": found.policy.mean()} | ({} if found.kl is None else {"loss/kl": found.kl.mean()})
        watched = {f"policy/{name}": value.mean() for name, value in found.watched.items()}
        sums = [value.detach().flatten(1).sum(1, keepdim=True) for value in (pairs.x, denoised)]
        return terms | watched, TurnValues(pairs.sigma, sums)  # a sum is broken where an entry is, and is small

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The reward of as many samples of the tuned teacher as the batch has, by its own sampler."""
        scores, _ = self._judged(self.predict_step(batch, batch_idx), batch.condition)
        for part, name in enumerate(self.reward.parts()):
            self.log(
                f"validation/{name}", scores[:, part].mean(), batch_size=len(scores), sync_dist=True, prog_bar=True
            )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As many samples as the batch has, with its conditions."""
        generator, model = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank), self.generative_model()
        return model.sample(model.latents(len(batch.x), generator), batch.condition)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what learns, and the running statistics, where advantages have some."""
        super().on_save_checkpoint(checkpoint)
        write_roles(self, "reference", checkpoint)
        if isinstance(self._advantages, RunningAdvantages):
            checkpoint[_ADVANTAGES] = self._advantages.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them.

        Raises:
            CheckpointError: where it is of other roles.
        """
        check_same_roles(checkpoint.get("roles"), self.roles)
        super().on_load_checkpoint(checkpoint)
        if isinstance(self._advantages, RunningAdvantages):
            self._advantages.load_state_dict(checkpoint.get(_ADVANTAGES, {}))

    def train(self, mode: bool = True) -> "RewardTuningModule":
        """What is frozen stays in evaluation mode, and the policy drops nothing out: it is one policy in all steps."""
        super().train(mode)
        if mode:
            train_without_dropout(self.denoiser)
        for frozen in (self.old, self.reference, self.guide, self.reward):
            if frozen is not None:
                frozen.eval()
        return self
