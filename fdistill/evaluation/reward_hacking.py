"""An alarm for reward hacking: the reward climbs while diversity leaves the band of the untuned teacher's own draws."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fdistill.evaluation.collapse_alarm import WATCHED, CollapseAlarm, bands
from fdistill.evaluation.reward_gap import Gap, Look
from fdistill.evaluation.seed_diversity import SeedAlarm


class HackingVerdict(NamedTuple):
    """What one evaluation says.

    Attributes:
        alarm: whether the reward is hacked.
        numbers: by name, for the log.
        reason: in words; empty without an alarm.
    """

    alarm: bool
    numbers: dict[str, float]
    reason: str = ""


class HackingAlarm:
    """Judges a tuned teacher by the draws of the untuned one.

    Recall, Vendi ratio and anchored TID have the bands of `CollapseAlarm`, the seeds of each condition those of
    `SeedAlarm`, both from the teacher's draws. An alarm needs one of them outside of its band in `patience` evaluations
    in a row, and a reward above the untuned teacher's by more than the 95% interval of the difference. Less diversity
    without more reward is a collapse, more reward inside the bands is what tuning is for: neither is an alarm.
    """

    def __init__(self, teacher: Sequence[Look], names: Sequence[str], patience: int = 1) -> None:
        """Args:
        teacher: draws of the untuned teacher by the sampler that is watched, at least 2.
        names: of the conditions.
        patience: evaluations in a row, >= 1.

        Raises:
            ValueError: for fewer than two draws.
        """
        self.seeds = SeedAlarm([look.found for look in teacher], names, patience)
        known = set.intersection(*(set(look.values) for look in teacher)) & set(WATCHED)
        null = {name: torch.tensor([look.values[name] for look in teacher]) for name in known}
        self.whole = CollapseAlarm(bands(null), patience)

    def update(self, look: Look, climb: Gap, turn: int) -> HackingVerdict:
        """Judge a draw; call once for each evaluation, in order.

        Args:
            look: by the sampler that is watched.
            climb: of the reward since the start, from the same latents.
            turn: of tuning.
        """
        whole, seeds = self.whole.update(look.values, turn), self.seeds.update(look.found, turn)
        climbs = climb.low > 0
        alarm = climbs and (whole.alarm or seeds.alarm)
        found = {f"margin/{name}": margin for name, margin in whole.margins.items()}
        found |= {name: value for name, value in seeds.numbers.items() if name.startswith(("vendi_ratio", "collapsed"))}
        found |= {"climb": climb.mean, "climb_low": climb.low, "outside": float(whole.alarm or seeds.alarm)}
        said = "; ".join(part for part in (whole.reason, seeds.reason) if part)
        reason = f"the reward rose by {climb.mean:.3g} (at least {climb.low:.3g}) while diversity fell: {said}"
        return HackingVerdict(alarm, found | {"alarm": float(alarm)}, reason if alarm else "")

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"whole": self.whole.state(), "seeds": self.seeds.alarm.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.whole.restore(state["whole"])
        self.seeds.alarm.restore(state["seeds"])
