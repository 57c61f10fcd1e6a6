"""Deterministic beside stochastic samples of a teacher: its loss by noise level, the numbers, and the samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from fdistill.evaluation.report.diagnostic_figures import draw_see_saw
from fdistill.evaluation.report.figure_file import BLUE, INK, new_figure, save_figure, styled
from fdistill.evaluation.report.grid import draw_points, image_block
from fdistill.evaluation.report.intervals import STANDARD_ERRORS
from fdistill.evaluation.see_saw import SeeSawCurve

WIDTH, UPPER, TITLE = 11.0, 4.4, 0.4  # inches: all across, and the heights of the numbers and of a title
IMAGES = (90, 10)  # of each row, and side by side
POINTS = 1500
ROWS = {"real": ("real", INK), "sde": ("stochastic", BLUE), "ode": ("deterministic", "#c28f2c")}
DRAWN = {
    "anchored_tid": "anchored TID (0; up: crowded)",
    "tid": "TID (0; up: crowded)",
    "recall": "recall (down: left out)",
    "vendi_ratio": "Vendi over real (1)",
    "precision": "precision",
    "frechet_distance": "Fréchet distance (0)",
}


@styled
def teacher_figure(
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
    """
    lower_height = WIDTH / len(ROWS) * _aspect(samples["real"]) + TITLE
    title = "Collapse of deterministic sampling" if report["collapse"] else "No collapse of deterministic sampling"
    figure = new_figure(WIDTH, TITLE + UPPER + lower_height, title)
    halves: Any = figure.subfigures(2, 1, height_ratios=(UPPER, lower_height))  # an array of two
    upper, lower = halves
    left, right = upper.subfigures(1, 2, width_ratios=(1, 1.15))
    axes = left.subplots()
    draw_see_saw(axes, curve, best)
    axes.set_title("Loss by noise level: red is above the best linear denoiser")
    for panel, (metric, name) in zip(right.subplots(2, 3).flat, DRAWN.items(), strict=True):
        _numbers(panel, report, metric, name)
    points = {row: x.detach().float().cpu() for row, x in samples.items()}
    for panel, (row, (name, colour)) in zip(lower.subplots(1, 3), ROWS.items(), strict=True):
        count = report["evaluations"].get(row)
        panel.set_title(name if count is None else f"{name}, {count} evaluations", color=colour)
        if points[row].ndim == 4:
            panel.imshow(image_block(points[row][: IMAGES[0]], IMAGES[1]), interpolation="nearest")
            panel.set_axis_off()
        else:
            draw_points(panel, points[row][:POINTS], torch.cat(list(points.values())), colour)
    return save_figure(figure, path)


def _aspect(x: Tensor) -> float:
    """Height over width of what is drawn of samples."""
    if x.ndim < 4:
        return 1.0
    rows, columns = -(-min(len(x), IMAGES[0]) // IMAGES[1]), min(len(x), IMAGES[1])
    return rows * x.shape[2] / (columns * x.shape[3])


def _numbers(axes: Axes, report: Mapping[str, Any], metric: str, name: str) -> None:
    axes.set_title(name, fontsize=8)
    for place, (row, (_, colour)) in enumerate(ROWS.items()):
        found = report[row].get(metric)
        if found is None:
            continue
        axes.vlines(place, *found["range"], color=colour, lw=4, alpha=0.45)
        spread = STANDARD_ERRORS * (found["error"] or 0)
        axes.errorbar(place, found["mean"], spread, fmt="o", ms=4, color=colour, capsize=2.5, lw=1)
    axes.set_xlim(-0.6, len(ROWS) - 0.4)
    axes.set_xticks(range(len(ROWS)), [name for name, _ in ROWS.values()], rotation=20)
    axes.grid(False, axis="x")
