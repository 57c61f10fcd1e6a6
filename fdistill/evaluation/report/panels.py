"""The dashboard as code: which logged names share a panel, and what one sees there when all is well.

`fdistill dashboard` draws these panels from run folders, or builds them as a workspace of Weights & Biases.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fdistill.core.yaml_files import read_yaml

COLLAPSE = "Collapse"  # the group below which the alarm's reasons stand
STUDENT = "metric/"
REFERENCES = {"teacher": "metric_teacher/", "floor": "metric_floor/"}  # the same numbers of the teacher, of real data


@dataclass(frozen=True)
class Panel:
    """One set of axes over the training step.

    Attributes:
        title: above it.
        names: logged names drawn in it; a * at the end stands for every ending.
        well: what one sees when all is well.
    """

    title: str
    names: Sequence[str]
    well: str

    def holds(self, name: str) -> bool:
        """Whether the number of this name is drawn here."""
        return re.fullmatch(self.pattern, name) is not None

    @property
    def pattern(self) -> str:
        """The names as a regular expression."""
        return "|".join(re.escape(name).replace(r"\*", ".*") for name in self.names)


@dataclass(frozen=True)
class Group:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]


_PANELS = read_yaml(Path(__file__).with_name("panels.yaml"))
PICTURES = Panel(**_PANELS["pictures"])
GROUPS = tuple(Group(title, tuple(Panel(**panel) for panel in panels)) for title, panels in _PANELS["groups"].items())


def beside(name: str) -> dict[str, str]:
    """Return what is drawn beside a number: "teacher" and "floor" to the names of the same number there."""
    if not name.startswith(STUDENT):
        return {}
    return {source: prefix + name.removeprefix(STUDENT) for source, prefix in REFERENCES.items()}


def all_groups(names: Iterable[str]) -> tuple[Group, ...]:
    """Return GROUPS, and a last group with a panel for every one of the logged `names` that they leave out."""
    held = {name for name in names for group in GROUPS for panel in group.panels if panel.holds(name)}
    held |= {reference for name in names for reference in beside(name).values()}
    rest = sorted(set(names) - held)
    return (*GROUPS, Group("Everything else", tuple(Panel(name, (name,), "") for name in rest)))
