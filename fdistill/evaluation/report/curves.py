"""What a run logged, read from its `metrics.jsonl`, and how a curve of it is drawn."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from fdistill.evaluation.report.panels import beside

LOG_FROM = 30  # largest over smallest value, above which an axis becomes logarithmic
LINES = {"teacher": "--", "floor": ":"}
NOISY_FROM = 40  # points, above which a running mean is drawn over the raw line
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


def draw_references(panel: Axes, name: str, curves: Curves, colour: str) -> list[float]:
    """Draw the last value of a metric for the teacher and for real data, where they are known; return these values."""
    drawn = []
    for source, reference in beside(name).items():
        if reference in curves:
            drawn.append(curves[reference][1][-1])
            panel.axhline(drawn[-1], color=colour, lw=1.1, ls=LINES[source])
    return drawn


def draw_curve(
    panel: Axes, steps: Sequence[float], values: Sequence[float], colour: str, pale: str, line: str = "-"
) -> None:
    """Draw one scalar over the training step; many points are drawn pale with their running mean on top."""
    noisy = len(values) >= NOISY_FROM
    marker = "o" if len(values) <= 15 else None
    panel.plot(steps, values, color=pale if noisy else colour, lw=0.8 if noisy else 1.4, ls=line, marker=marker, ms=3)
    if noisy:
        panel.plot(steps, running_mean(np.asarray(values)), color=colour, lw=1.4, ls=line)


def style_axes(panel: Axes, values: Sequence[float]) -> None:
    """Give axes that show `values` over the training step their scale and ticks."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > LOG_FROM * min(finite):
        panel.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if max(finite) < 100 * min(finite) else (1.0,)
        panel.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        if finite and min(finite) == max(finite):  # a constant in the middle, not magnified rounding
            panel.set_ylim(finite[0] - (abs(finite[0]) or 1), finite[0] + (abs(finite[0]) or 1))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel("step", fontsize=8)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over a twentieth of the points around each, missing values left out."""
    window = max(3, len(values) // 20)
    present = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(present, values, 0), kernel, mode="same")
    count = np.convolve(present.astype(float), kernel, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _record(line: str) -> dict[str, Any] | None:
    """Return what one line logged, or None when it is not whole."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None
