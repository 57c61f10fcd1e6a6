"""Measured scaling laws that come with the package, and what they say of a planned run: numbers, or why none."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from fdistill.data import GenerativeDataModule
from fdistill.training import DistillationModule
from fdistill.training.planning.plan import Plan
from fdistill.training.planning.power_law import LEVEL, Interval, PowerLaw

FILE = Path(__file__).with_name("digits_law.json")
"""Written by tools/fit_scaling.py."""


class ScalingLaw(NamedTuple):
    """The laws of one problem.

    problem: what a run has to be for them to be of it: class of the data, of the objective, steps of the student.
    measured: further settings of the measured runs, any of which may move the numbers.
    laws: by quantity, in inputs student and teacher (weights) and samples (generated for the student's updates).
    unknown: quantities for which there is none, with the reason.
    held_out: what the laws predicted of larger runs, and what these gave, in a sentence.
    """

    problem: Mapping[str, Any]
    measured: Mapping[str, Any]
    laws: Mapping[str, PowerLaw]
    unknown: Mapping[str, str]
    held_out: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self._asdict() | {"laws": {name: law.to_json() for name, law in self.laws.items()}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**{**found, "laws": {name: PowerLaw.from_json(law) for name, law in found["laws"].items()}})


class Quote(NamedTuple):
    """What a law says of a run.

    predicted: interval of a single run by quantity; empty where it is not of the law's problem, or outside its range.
    reasons: why there is none, or what else differs from the measured runs.
    law: which one.
    """

    predicted: Mapping[str, Interval]
    reasons: tuple[str, ...]
    law: ScalingLaw

    def to_json(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        predicted = {name: interval._asdict() for name, interval in self.predicted.items()}
        return {"level": LEVEL, "predicted": predicted, "reasons": list(self.reasons), "law": self._described()}

    def _described(self) -> dict[str, Any]:
        ranges = {name: ends for law in self.law.laws.values() for name, ends in law.ranges.items()}
        return {
            "problem": dict(self.law.problem),
            "measured": dict(self.law.measured),
            "ranges": {name: list(ends) for name, ends in ranges.items()},
            "unknown": dict(self.law.unknown),
            "held_out": self.law.held_out,
        }


@functools.cache
def packaged_law() -> ScalingLaw:
    """The law of one-step students of digits."""
    return ScalingLaw.from_json(json.loads(FILE.read_text(encoding="utf-8")))


def quote(law: ScalingLaw, module: DistillationModule, data: GenerativeDataModule, plan: Plan) -> Quote:
    """What the law says of a run: nothing outside of the problem and the ranges it was measured for."""
    problem, measured = _facts(module, data, plan)
    foreign = [f"{name} {problem[name]}, not {value}" for name, value in law.problem.items() if problem[name] != value]
    if foreign:
        return Quote({}, tuple(foreign), law)
    at = {name: float(plan.parameters.get(name, 0)) for name in ("student", "teacher")}
    at["samples"] = float(plan.updates * plan.batch_size * plan.devices)
    outside = dict.fromkeys(reason for each in law.laws.values() for reason in each.outside(at))
    if outside:
        return Quote({}, tuple(outside), law)
    other = [f"{name} {measured[name]}, not {value}" for name, value in law.measured.items() if measured[name] != value]
    return Quote({name: each.single_run(at) for name, each in law.laws.items()}, tuple(other), law)


def _facts(module: DistillationModule, data: GenerativeDataModule, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a run: problem and measured, as a law has them."""
    objective = module.objective
    divergence = getattr(objective, "divergence", None)
    return (
        {"data": type(data).__name__, "objective": type(objective).__name__, "steps": len(module.levels)},
        {
            "divergence": type(divergence).__name__,
            "network": type(module.student.network).__name__,
            "turn": module.turn_schedule.turn,
            "sigma_init": module.levels[0],
            "batch_size": plan.batch_size * plan.devices,
        },
    )
