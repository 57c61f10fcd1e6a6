"""Which networks learn in which turn, and how often the student has learnt."""

from typing import Literal, NamedTuple

Turn = Literal["fused", "alternating"]
"""Every network learns from one generated batch, or one side at a time."""


class Learners(NamedTuple):
    """The sides that learn in a turn; the fake side are fake score and discriminator."""

    student: bool
    fake: bool


class TurnSchedule(NamedTuple):
    """Turns of a distillation: a warm-up of the fake side, then fused turns, or cycles that end with the student's.

    Where there is no fake side every turn is the student's.
    """

    turn: Turn
    fake_updates_per_student: int
    warmup: int

    @classmethod
    def of(cls, fake_side: bool, turn: Turn, fake_updates_per_student: int, warmup: int) -> "TurnSchedule":
        """The schedule of a run, with a fake side or without one."""
        return cls(turn, fake_updates_per_student, warmup) if fake_side else cls("alternating", 0, 0)

    @property
    def cycle(self) -> int:
        """Turns for one student update."""
        return 1 if self.turn == "fused" else self.fake_updates_per_student + 1

    def learners(self, turn: int) -> Learners:
        """Who learns in this turn."""
        if turn < self.warmup:
            return Learners(student=False, fake=True)
        if self.turn == "fused":
            return Learners(student=True, fake=True)
        student = (turn - self.warmup) % self.cycle == self.cycle - 1
        return Learners(student, not student)

    def updates_after(self, turns: int) -> int:
        """Updates of the student when so many turns are done."""
        return max(turns - self.warmup, 0) // self.cycle

    def is_logged(self, turn: int, every: int) -> bool:
        """Alternating runs log whole cycles, so that the student's terms are never left out."""
        return every > 0 and turn % (max(every // self.cycle, 1) * self.cycle) < self.cycle
