"""Deterministic beside stochastic samples of a teacher: its loss by noise level, the numbers, and the samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fdistill.evaluation.report.diagnostic_figures import draw_see_saw
from fdistill.evaluation.report.figure_file import BLUE, INK, save_figure
from fdistill.evaluation.report.grid import image_block, point_limits
from fdistill.evaluation.report.intervals import STANDARD_ERRORS
from fdistill.evaluation.see_saw import SeeSawCurve

AMBER = "#c28f2c"
DPI = 110
WIDTH, UPPER, TITLE = 11.0, 4.4, 0.4  # inches: all across, and the heights of the numbers and of a title
IMAGES = (90, 10)  # of each row, and side by side
POINTS = 1500
ROWS = {"real": ("real", INK), "sde": ("stochastic", BLUE), "ode": ("deterministic", AMBER)}
DRAWN = {
    "anchored_tid": "anchored TID (0; up: crowded)",
    "tid": "TID (0; up: crowded)",
    "recall": "recall (down: left out)",
    "vendi_ratio": "Vendi over real (1)",
    "precision": "precision",
    "frechet_distance": "Fréchet distance (0)",
}


def collapse_figure(
    report: Mapping[str, Any],
    curve: SeeSawCurve,
    best: SeeSawCurve | None,
    samples: Mapping[str, Tensor],
    path: str | Path,
) -> Path:
    """Draw the diagnosis of a teacher into one PNG at `path`; return the path.

    Left the excess loss over sigma, right each number of real data, stochastic and deterministic samples with 95%
    intervals of single draws (thin) and the range of the draws (thick), below the samples.

    Args:
        report: of `diagnose_teacher`.
        curve: of the teacher.
        best: of the exact denoiser, where it is known.
        samples: "real", "sde", "ode": images [n, C, H, W] in [-1, 1], or points [n, d].
        path: the file to write; missing folders are made.
    """
    lower_height = WIDTH / len(ROWS) * _aspect(samples["real"]) + TITLE
    height = TITLE + UPPER + lower_height
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - TITLE / height))
    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout=layout)
    title = "Collapse of deterministic sampling" if report["collapse"] else "No collapse of deterministic sampling"
    figure.text(0.01, 1 - 0.2 * TITLE / height, title, fontsize=12, fontweight="bold", color=INK, va="top")
    halves: Any = figure.subfigures(2, 1, height_ratios=(UPPER, lower_height))  # an array of two
    upper, lower = halves
    left, right = upper.subfigures(1, 2, width_ratios=(1, 1.15))
    axes = left.subplots()
    draw_see_saw(axes, curve, best)
    axes.set_title("Loss by noise level: red is above the best linear denoiser", fontsize=9, loc="left", color=INK)
    panels = right.subplots(2, 3)
    for panel, (metric, name) in zip(panels.flat, DRAWN.items(), strict=True):
        _numbers(panel, report, metric, name)
    for panel, (row, (name, colour)) in zip(lower.subplots(1, 3), ROWS.items(), strict=True):
        count = report["evaluations"].get(row)
        panel.set_title(name if count is None else f"{name}, {count} evaluations", fontsize=9, loc="left", color=colour)
        _samples(panel, samples, row, colour)
    return save_figure(figure, path, DPI)


def _aspect(x: Tensor) -> float:
    """Height over width of what is drawn of samples."""
    if x.ndim < 4:
        return 1.0
    rows, columns = -(-min(len(x), IMAGES[0]) // IMAGES[1]), min(len(x), IMAGES[1])
    return rows * x.shape[2] / (columns * x.shape[3])


def _numbers(axes: Axes, report: Mapping[str, Any], metric: str, name: str) -> None:
    axes.set_title(name, fontsize=8, loc="left", color=INK)
    for place, (row, (_, colour)) in enumerate(ROWS.items()):
        found = report[row].get(metric)
        if found is None:
            continue
        axes.vlines(place, *found["range"], color=colour, lw=4, alpha=0.45)
        spread = STANDARD_ERRORS * (found["error"] or 0)
        axes.errorbar(place, found["mean"], spread, fmt="o", ms=4, color=colour, capsize=2.5, lw=1)
    axes.set_xlim(-0.6, len(ROWS) - 0.4)
    axes.set_xticks(range(len(ROWS)), [name for name, _ in ROWS.values()], rotation=20)
    axes.tick_params(labelsize=7, colors=INK, length=2)
    axes.grid(axis="y", alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _samples(axes: Axes, samples: Mapping[str, Tensor], row: str, colour: str) -> None:
    x = samples[row].detach().float().cpu()
    if x.ndim == 4:
        axes.imshow(image_block(x[: IMAGES[0]], IMAGES[1]), interpolation="nearest")
        axes.set_axis_off()
        return
    x = x.flatten(1)
    low, high = point_limits(torch.cat([rows.float().flatten(1)[:, :2] for rows in samples.values()]))
    if x.shape[1] == 1:
        axes.hist(x[:, 0].numpy(), bins=np.linspace(low, high, 61).tolist(), density=True, color=colour)
    else:
        axes.scatter(x[:POINTS, 0], x[:POINTS, 1], s=3, alpha=0.5, color=colour, linewidths=0)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
    axes.set_xlim(low, high)
    axes.tick_params(labelsize=7, colors=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
