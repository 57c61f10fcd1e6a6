"""The kinds of turn in a run: what learns in each, how many there are, and which one stands for its kind."""

from typing import NamedTuple

from lightning.pytorch import LightningModule

from fdistill.training import DistillationModule

_NAMES = {(True, True): "fused", (True, False): "student", (False, True): "fake"}


class TurnKind(NamedTuple):
    """Turns of one kind: how many in a run, and the number of one in its middle, where schedules are under way."""

    count: int  # type: ignore[assignment]  # it hides a method of tuples
    example: int


def kind_of(module: LightningModule, turn: int) -> str:
    """teacher, fused, student or fake."""
    return _NAMES[module.turn_schedule.learners(turn)] if isinstance(module, DistillationModule) else "teacher"


def turns_of_run(module: LightningModule, turns: int) -> dict[str, TurnKind]:
    """The kinds of turn in a run of so many, the student's first; none that it never makes.

    Args:
        module: teacher training or distillation.
        turns: of the whole run, >= 1.

    Raises:
        ValueError: for a run without turns.
    """
    if turns < 1:
        raise ValueError(f"a run has at least one turn: got {turns}; set trainer.max_steps")
    found: dict[str, list[int]] = {}
    for turn in range(turns):
        found.setdefault(kind_of(module, turn), []).append(turn)
    return {name: TurnKind(len(found[name]), found[name][len(found[name]) // 2]) for name in sorted(found)[::-1]}
