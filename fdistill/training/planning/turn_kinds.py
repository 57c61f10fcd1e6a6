"""The kinds of turn in a run: what learns in each, how many there are, and which one stands for its kind."""

from typing import NamedTuple

from lightning.pytorch import LightningModule

from fdistill.training import DistillationModule, RewardTuningModule
from fdistill.training.turn_schedule import TurnSchedule

_NAMES = {(True, True): "fused", (True, False): "student", (False, True): "fake"}


class TurnKind(NamedTuple):
    """Turns of one kind: how many in a run, and the number of one in its middle, where schedules are under way."""

    count: int  # type: ignore[assignment]  # it hides a method of tuples
    example: int


def kind_of(module: LightningModule, turn: int) -> str:
    """teacher, tuning, fused, student or fake."""
    if isinstance(module, DistillationModule):
        return _NAMES[module.turn_schedule.learners(turn)]
    return "tuning" if isinstance(module, RewardTuningModule) else "teacher"


def turns_of_run(module: LightningModule, turns: int) -> dict[str, TurnKind]:
    """The kinds of turn in a run of so many, the student's first; none that it never makes.

    Args:
        module: teacher training, reward tuning or distillation.
        turns: of the whole run, >= 1.

    Raises:
        ValueError: for a run without turns.
    """
    if turns < 1:
        raise ValueError(f"a run has at least one turn: got {turns}; set trainer.max_steps")
    if not isinstance(module, DistillationModule):
        return {kind_of(module, 0): TurnKind(turns, turns // 2)}
    schedule = module.turn_schedule
    student = range(schedule.warmup + schedule.cycle - 1, turns, schedule.cycle)
    fake = turns - len(student)
    found = {}
    if student:
        middle = student[len(student) // 2]
        found[kind_of(module, middle)] = TurnKind(len(student), middle)
    if fake:
        found["fake"] = TurnKind(fake, _nth_fake(schedule, fake // 2))
    return found


def _nth_fake(schedule: TurnSchedule, n: int) -> int:
    """Number of the turn that is the n-th, from 0, in which the fake side learns alone."""
    later = n - schedule.warmup
    if later < 0:
        return n
    cycles, within = divmod(later, schedule.cycle - 1)
    return schedule.warmup + cycles * schedule.cycle + within
