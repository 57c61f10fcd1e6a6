"""How often each kind of turn is made in a run, and which turn stands for its kind."""

from typing import NamedTuple

from fdistill.training import DistillationModule, GenerativeModule
from fdistill.training.turn_schedule import TurnSchedule


class TurnKind(NamedTuple):
    """Turns of one kind: how many in a run, and the number of one in its middle, where schedules are under way."""

    count: int  # type: ignore[assignment]  # it hides a method of tuples
    example: int


def turns_of_run(module: GenerativeModule, turns: int) -> dict[str, TurnKind]:
    """The kinds of turn in a run of so many: teacher, fused, or student and fake; none that it never makes.

    Args:
        module: teacher training or distillation.
        turns: of the whole run, >= 1.

    Raises:
        ValueError: for a run without turns.
    """
    if turns < 1:
        raise ValueError(f"a run has at least one turn: got {turns}; set trainer.max_steps")
    if not isinstance(module, DistillationModule):
        return {"teacher": TurnKind(turns, turns // 2)}
    schedule = module.turn_schedule
    students = schedule.updates_after(turns)
    kinds = {"fused" if schedule.turn == "fused" else "student": TurnKind(students, _student_turn(schedule, students))}
    kinds["fake"] = TurnKind(turns - students, _fake_turn(schedule, students))
    return {name: kind for name, kind in kinds.items() if kind.count}


def _student_turn(schedule: TurnSchedule, students: int) -> int:
    return schedule.warmup + (students // 2 + 1) * schedule.cycle - 1


def _fake_turn(schedule: TurnSchedule, students: int) -> int:
    """The first of a cycle; of the warm-up where only that has one."""
    return 0 if schedule.turn == "fused" or not students else schedule.warmup + students // 2 * schedule.cycle
