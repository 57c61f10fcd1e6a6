"""Which settings of a run may change when it continues: its model and data may not, how it is trained may."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fdistill.core.moved_names import todays_names

_CHANGEABLE = re.compile(  # what takes effect, in a run that is the same one nevertheless
    r"model\.\w*optimizer\.\w+"  # the optimisers themselves say which of their arguments
    r"|model\.(discriminator_lr|gradient_clip|accumulate|skip_nonfinite|meta_start)"
    r"|data\.num_workers"
    r"|trainer\.precision"
)
_PATHS = re.compile(  # where something lies; what it holds is compared elsewhere, or is in the checkpoint
    r"model\.(teacher|guide|student|fake_score)|data\.folder"
)
_INITIAL = ("model.student", "model.fake_score")
_MOST = 3  # changes that a refusal shows


class Change(NamedTuple):
    """A setting that differs from the one that a checkpoint was made with."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} {_brief(self.before)} -> {_brief(self.now)}"

    @property
    def allowed(self) -> bool:
        """Whether the same run may continue with it."""
        moved = isinstance(self.before, str) and isinstance(self.now, str) and bool(_PATHS.fullmatch(self.name))
        return moved or bool(_CHANGEABLE.fullmatch(self.name))

    def said(self) -> str:
        """What it does to the run, in words."""
        return f"{self.name} has no effect, the weights are the checkpoint's" if self.name in _INITIAL else str(self)


def flat_settings(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by their full names; a class is the value of its own name, and its init_args lie below it."""
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    found = {name: value["class_path"]} if "class_path" in value else {}
    inside = (value.get("init_args") or {}) if "class_path" in value else value
    for key, item in inside.items():
        found |= flat_settings(item, f"{name}.{key}".lstrip("."))
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The settings of `flat_settings` that differ, in the order of `now`.

    Only names that both have are compared: a class that changed is a change of itself, not of all of its arguments, and
    an option that another version of this package added is none.
    """
    before, now = todays_names(dict(before)), todays_names(dict(now))
    return [Change(name, before[name], now[name]) for name in now if name in before and before[name] != now[name]]


def check_kept(found: Sequence[Change], checkpoint: str) -> None:
    """Raise ValueError where a run would continue as another one.

    Args:
        found: of `changes`.
        checkpoint: that it continues from.
    """
    other = [change for change in found if not change.allowed]
    if not other:
        return
    shown = "; ".join(f"expected {c.name} {_brief(c.before)}, got {_brief(c.now)}" for c in other[:_MOST])
    more = f" (and {len(other) - _MOST} more)" if len(other) > _MOST else ""
    raise ValueError(
        f"a run continues with the model and data that it began with: {shown}{more}; leave them as they were, or "
        f"branch into a new folder: --trainer.default_root_dir FOLDER --ckpt_path {checkpoint}"
    )


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
