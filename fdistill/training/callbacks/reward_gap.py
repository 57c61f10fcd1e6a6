"""The reward gap in a run: a tuned teacher's stochastic and deterministic samples, and an alarm for reward hacking."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from fdistill.core.distributed import patient, together
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.metrics import ConditionDiversity
from fdistill.evaluation.reward_gap import Gap, GapProbe, Look
from fdistill.evaluation.reward_hacking import HackingAlarm
from fdistill.models.condition import Condition
from fdistill.objectives.reward_algorithms import PolicyGradient
from fdistill.training.callbacks.measured import in_run_precision, publish
from fdistill.training.judging import judged
from fdistill.training.loggers import log_numbers, log_words
from fdistill.training.reward_tuning import RewardTuningModule
from fdistill.training.run_parts import data_of


class RewardGap(L.Callback):
    """Logs the reward of a tuned teacher's stochastic and deterministic samples, and warns of reward hacking.

    For each number of steps K, of samples from the same latents at every measurement, under gap/K/: each part of the
    reward, deterministic/<part> and stochastic/<part>; their difference, stochastic less deterministic, <part>, with
    its 95% interval, <part>_low and <part>_high; and of both kinds recall, vendi_ratio, anchored_tid, precision, and
    condition_vendi, the Vendi score of the seeds of one condition.

    The untuned teacher is measured before the first turn, and drawn for the bands of `HackingAlarm`, which watches the
    deterministic samples of the last K. It logs hacking/alarm, /climb, /margin/<metric> and, in words, /reason.
    """

    def __init__(
        self,
        every_n_turns: int = 25,
        steps: tuple[int, ...] = (10, 20),
        eta: float | None = None,
        num_conditions: int = 10,
        seeds: int = 32,
        teacher_draws: int = 8,
        spaces: dict[str, FeatureExtractor] | None = None,
        patience: int = 1,
        action: Literal["warn", "stop"] = "warn",
        seed: int = 0,
    ) -> None:
        """Args:
        every_n_turns: between two measurements.
        steps: numbers of steps, each >= 1, on EDM's grid between the ends of the rollouts' grid.
        eta: of the stochastic samples, > 0; None for that of the rollouts.
        num_conditions: classes or prompts, at most.
        seeds: samples of each, >= 2.
        teacher_draws: of the untuned teacher, behind the bands, >= 2.
        spaces: feature extractors by name, the first for recall; None for the default ones and patches of images.
        patience: measurements in a row outside of a band that make an alarm.
        action: besides the warning: nothing, or stop the run.
        seed: of latents, reference and extractors.
        """
        if min(every_n_turns, num_conditions, patience, *steps) < 1 or not steps or min(seeds, teacher_draws) < 2:
            raise ValueError(
                "RewardGap needs positive numbers, one of steps at least, and at least 2 seeds and teacher_draws: got "
                f"{every_n_turns}, {num_conditions}, {patience}, steps {list(steps)}, {seeds}, {teacher_draws}"
            )
        if eta is not None and not 0 < eta < float("inf"):
            raise ValueError(f"RewardGap compares eta 0 with stochastic samples: expected eta > 0, got {eta}")
        if action not in ("warn", "stop"):
            raise ValueError(f"action of RewardGap is warn or stop: got {action}")
        self.every_n_turns, self.steps, self.eta, self.action = every_n_turns, tuple(steps), eta, action
        self.num_conditions, self.seeds, self.teacher_draws = num_conditions, seeds, teacher_draws
        self.spaces, self.patience, self.seed = spaces, patience, seed
        self.alarm: HackingAlarm | None = None
        self._probe: GapProbe | None = None
        self._teacher: list[Look] = []  # draws of the untuned one; the first from the latents of the measurements
        self._restored: dict[str, Any] | None = None
        self._last, self._on = 0, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first turn whether there is something to compare.

        Raises:
            ValueError: for a run that tunes towards no reward, has no training samples, or no stochasticity.
        """
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        has_real = isinstance(data, GenerativeDataModule) and data.has_real
        if not isinstance(pl_module, RewardTuningModule) or not has_real:
            raise ValueError(
                "RewardGap measures a RewardTuningModule beside training samples: got "
                f"{type(pl_module).__name__} and {type(data).__name__}; leave it out, or give both"
            )
        if pl_module.generative_model().kind != "teacher":
            raise ValueError(
                "RewardGap samples by any number of steps, with and without noise: expected a teacher, got a student, "
                "which has steps of its own; leave it out"
            )
        if self.eta is None and not isinstance(pl_module.algorithm, PolicyGradient):
            raise ValueError(
                f"rollouts of {type(pl_module.algorithm).__name__} have no noise to compare with: expected an eta > 0 "
                "of RewardGap, got None; give 1, say"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the untuned teacher.

        Raises:
            ValueError: in a run that continues without what this callback knew of it, or with other numbers of samples.
        """
        module = cast(RewardTuningModule, pl_module)
        if self._restored is None and trainer.global_step:
            raise ValueError(
                f"RewardGap measures the teacher before it is tuned: expected turn 0, got {trainer.global_step} of a "
                "run that was without it; begin a new run, or leave it out"
            )
        with torch.no_grad(), patient():
            if self._restored is None:
                looks = self._looks(trainer, module)
                last, draws = self.steps[-1], range(1, self.teacher_draws)
                self._teacher = [looks[last, 0.0], *(self._look(trainer, module, last, 0.0, draw) for draw in draws)]
                log_numbers(trainer.loggers, self._numbers(module, looks), trainer.global_step)
        probe, before = self._prepared(trainer, module), len(self._teacher[0].scores)
        if before != probe.n:
            raise ValueError(
                f"RewardGap goes on with the samples that it began with: expected {before}, got {probe.n}; give the "
                "num_conditions and seeds of before"
            )
        self.alarm = HackingAlarm(self._teacher, probe.probe.names, self.patience)
        if self._restored is not None:
            self.alarm.restore(self._restored)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Measure on schedule."""
        module, turn = cast(RewardTuningModule, pl_module), trainer.global_step
        if turn == self._last or turn % self.every_n_turns:
            return
        self._last = turn
        with torch.no_grad(), patient():
            looks = self._looks(trainer, module)
        watched, alarm = looks[self.steps[-1], 0.0], cast(HackingAlarm, self.alarm)
        both = module.reward.total(torch.cat([watched.scores, self._teacher[0].scores]))  # z-scores of both together
        verdict = alarm.update(watched, Gap.of(*both.chunk(2)), turn)
        found = {f"hacking/{name}": value for name, value in verdict.numbers.items()}
        publish(trainer, module, self._numbers(module, looks) | found)
        was_on, self._on = self._on, verdict.alarm
        if not verdict.alarm:
            return
        log_words(trainer.loggers, "hacking/reason", verdict.reason, turn)
        if not was_on:
            rank_zero_warn(verdict.reason)
        if self.action == "stop":
            rank_zero_info("RewardGap stops the run")
            trainer.should_stop = True

    def _looks(self, trainer: L.Trainer, module: RewardTuningModule) -> dict[tuple[int, float], Look]:
        """Of every number of steps, with and without noise."""
        eta = cast(PolicyGradient, module.algorithm).eta if self.eta is None else self.eta
        return {(steps, kind): self._look(trainer, module, steps, kind) for steps in self.steps for kind in (0.0, eta)}

    def _look(self, trainer: L.Trainer, module: RewardTuningModule, steps: int, eta: float, draw: int = 0) -> Look:
        def judge(pictures: Tensor, condition: Condition) -> Tensor:
            how = (module.reward, pictures, condition, None, module.device, module.at_once)
            return together(lambda: judged(*how)[0])

        model = in_run_precision(trainer, module.generative_model())
        ranks = (trainer.global_rank, trainer.world_size)
        return self._prepared(trainer, module).look(model, judge, steps, eta, draw, ranks)

    def _numbers(self, module: RewardTuningModule, looks: Mapping[tuple[int, float], Look]) -> dict[str, float]:
        """By the names in the log."""
        found: dict[str, float] = {}
        for (steps, eta), look in looks.items():
            kind = "stochastic" if eta else "deterministic"
            means = dict(zip(module.reward.parts(), look.scores.mean(0).tolist(), strict=True))
            found |= {f"gap/{steps}/{kind}/{name}": value for name, value in (means | look.values).items()}
            for part, name in enumerate(module.reward.parts() if eta else ()):
                gap = Gap.of(look.scores[:, part], looks[steps, 0.0].scores[:, part])
                values = {name: gap.mean, f"{name}_low": gap.low, f"{name}_high": gap.high}
                found |= {f"gap/{steps}/{key}": value for key, value in values.items()}
        return found

    def _prepared(self, trainer: L.Trainer, module: RewardTuningModule) -> GapProbe:
        if self._probe is None:
            ends = module.levels[0], min(level for level in module.levels if level > 0)
            sizes = (self.num_conditions, self.seeds, self.spaces, self.seed)
            self._probe = GapProbe(data_of(trainer), ends, *sizes, device=module.device)
        return self._probe

    def state_dict(self) -> dict[str, Any]:
        """What the untuned teacher was like, what the alarm has seen, and when it last measured."""
        teacher = [
            {
                "scores": look.scores,
                "found": {name: tuple(pair) for name, pair in look.found.items()},
                "values": look.values,
            }
            for look in self._teacher
        ]
        alarm = None if self.alarm is None else self.alarm.state()
        return {"last": self._last, "on": self._on, "alarm": alarm, "teacher": teacher}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self._last, self._on, self._restored = state_dict["last"], state_dict["on"], state_dict["alarm"]
        for look in state_dict["teacher"]:
            found = {name: ConditionDiversity(*pair) for name, pair in look["found"].items()}
            self._teacher.append(Look(look["scores"], found, look["values"]))
