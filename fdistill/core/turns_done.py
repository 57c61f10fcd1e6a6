"""How far a run has come, by the end of its metrics.jsonl."""

import json
from pathlib import Path

_TAIL = 2**16  # bytes at the end of the file in which its last whole line is looked for


def turns_done(metrics: str | Path) -> int | None:
    """How many turns the last whole line of metrics.jsonl tells of; None where there is none."""
    try:
        with Path(metrics).open("rb") as file:
            file.seek(max(0, Path(metrics).stat().st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            values = json.loads(line)
            return values["step"] + any(name.startswith("loss/") for name in values)  # losses are written in a turn
        except (ValueError, KeyError, TypeError):  # a kill tears the last line
            continue
    return None
