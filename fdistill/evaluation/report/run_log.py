"""What a run wrote into its metrics.jsonl: curves of numbers, and words."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_CURVES = ("step", "epoch", "time", "seconds")

Curves = dict[str, tuple[list[float], list[float]]]


@dataclass
class RunLog:
    """What was logged, by name.

    Attributes:
        curves: steps and values of each number, in the order of writing.
        words: steps and sentences.
    """

    curves: Curves = field(default_factory=dict)
    words: dict[str, list[tuple[float, str]]] = field(default_factory=dict)


def read_run_log(source: Path) -> RunLog:
    """Read a file with one JSON object per line, holding "step" and named numbers or words.

    Lines that a crash tore in two are left out: the last one, or one in the middle where the run was resumed.

    Raises:
        ValueError: where no line is a JSON object with a step.
        OSError: when the file cannot be read.
    """
    lines = [line for line in source.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    records = [record for line in lines if (record := _record(line)) is not None]
    if lines and not records:
        raise ValueError(
            f'{source} holds no curves: expected a JSON object with "step" per line, got {lines[0][:60]!r}; '
            "name the metrics.jsonl of a run folder"
        )
    log = RunLog()
    for record in records:
        for name, value in record.items():
            if name in NOT_CURVES:
                continue
            if isinstance(value, int | float):
                steps, values = log.curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(float(value))
            elif isinstance(value, str):
                log.words.setdefault(name, []).append((record["step"], value))
    return log


def _record(line: str) -> dict[str, Any] | None:
    """Return what one line logged, or None when it is not whole."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None
