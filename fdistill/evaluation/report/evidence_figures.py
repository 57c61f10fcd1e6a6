"""Pictures that show why a generator's numbers are what they are: spectra, classes, copies, intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fdistill.evaluation.report.figure_file import BLUE, INK, save_figure
from fdistill.evaluation.report.grid import DPI, GAP, MARGIN, image_block
from fdistill.evaluation.report.table import METRICS, ROWS

COLOURS = {"floor": "#6b7280", "teacher": "#d1571d", "student": BLUE, "class_gaussian": "#2a8a4a"}
SMALLEST_SHARE = 1e-6
BAR = 0.26  # of the distance of two classes
COLUMNS = 4
PANEL = (2.7, 1.4)  # inches, heading and ticks included
LABELS = 1.5  # inches, for the names of the rows
NAMES = 100  # pixels on the left, for the names of two lines of images
BELOW = 22  # pixels for a number below a pair
ACROSS = 10


def spectra_figure(spectra: Mapping[str, Tensor], path: str | Path) -> Path:
    """Draw the falling eigenvalue shares of each row's Vendi kernel over their rank into a PNG; return the path.

    Args:
        spectra: row of a report to shares [r], falling, as `vendi_spectrum` returns them; at least one.
        path: the file to write; missing folders are made.

    Raises:
        OSError: when it cannot be written.
    """
    figure, panel = _figure(6.4, 3.6)
    for name in (row for row in ROWS if row in spectra):
        values = spectra[name].double().cpu().numpy()
        marker = "o" if len(values) <= 64 else None
        rank = np.arange(1, len(values) + 1)
        panel.plot(rank, values, color=COLOURS[name], lw=1.5, marker=marker, ms=3, label=ROWS[name])
    panel.set_yscale("log")
    smallest = min(float(shares.min()) for shares in spectra.values())
    panel.set_ylim(bottom=max(smallest / 2, SMALLEST_SHARE))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("direction, by its share", fontsize=9, color=INK)
    panel.set_ylabel("share of the kernel", fontsize=9, color=INK)
    panel.legend(fontsize=8, frameon=False)
    return save_figure(figure, path, DPI)


def class_bars_figure(by_class: Mapping[str, Mapping[str, Sequence[float | None]]], path: str | Path) -> Path:
    """Draw precision and recall of every class, the rows of a report side by side, into a PNG; return the path.

    Args:
        by_class: row of a report to {"precision", "recall"}, a share or None for each class; at least one row.
        path: the file to write; missing folders are made.

    Raises:
        OSError: when it cannot be written.
    """
    count = len(next(iter(by_class.values()))["recall"])
    figure = Figure(figsize=(max(6.4, 0.36 * count + 1.6), 4.6), facecolor="white", layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, metric in zip(panels, ("precision", "recall"), strict=True):
        for i, (name, values) in enumerate(by_class.items()):
            place = np.arange(count) + BAR * (i - (len(by_class) - 1) / 2)
            heights = [np.nan if value is None else value for value in values[metric]]
            panel.bar(place, heights, BAR, color=COLOURS[name], label=ROWS[name])
        panel.set_title(METRICS[metric].title, fontsize=10, loc="left", color=INK)
        panel.set_ylim(0, 1)
        _style(panel)
    panels[1].set_xticks(range(count))
    panels[1].set_xlabel("class", fontsize=9, color=INK)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return save_figure(figure, path, DPI)


def copies_figure(generated: Tensor, training: Tensor, ratio: Tensor, path: str | Path) -> Path:
    """Draw samples above their nearest training images, the ratio of distances below each pair, into a PNG.

    Args:
        generated: images [c, C, H, W] in [-1, 1], c >= 1.
        training: the nearest training image of each, [c, C, H, W].
        ratio: distance to it over that to the second nearest, [c].
        path: the file to write; missing folders are made.

    Returns:
        the path.

    Raises:
        OSError: when it cannot be written.
    """
    lines = [slice(i, i + ACROSS) for i in range(0, len(ratio), ACROSS)]
    blocks = [[image_block(x[line].float().cpu(), ACROSS) for x in (generated, training)] for line in lines]
    side, line_width = blocks[0][0].shape[:2]
    step = (line_width + GAP) / min(ACROSS, len(ratio))
    block_height = 2 * side + GAP + BELOW
    width, height = NAMES + line_width + MARGIN, len(lines) * (block_height + GAP) + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    top = height - MARGIN
    for line, pair in zip(lines, blocks, strict=True):
        for i, (block, name) in enumerate(zip(pair, ("student", "nearest\ntraining image"), strict=True)):
            low = top - (i + 1) * side - i * GAP
            figure.figimage(block, xo=NAMES, yo=low, origin="upper")
            _write(figure, (NAMES - 8) / width, (low + side / 2) / height, name, ha="right", va="center")
        for i, value in enumerate(ratio[line].tolist()):
            middle = NAMES + i * step + (step - GAP) / 2
            number = f"{value:.2f}".replace("0.", ".", 1)
            _write(figure, middle / width, (top - 2 * side - GAP - 5) / height, number, ha="center", va="top")
        top -= block_height + GAP
    return save_figure(figure, path, DPI)


def intervals_figure(report: Mapping[str, Any], path: str | Path) -> Path:
    """Draw every metric of a report as dots, one for each row, with whiskers where it has an interval, into a PNG.

    Args:
        report: with a student row.
        path: the file to write; missing folders are made.

    Returns:
        the path.

    Raises:
        OSError: when it cannot be written.
    """
    names = [name for name in reversed(ROWS) if report.get(name)]
    shown = [metric for metric in METRICS if report["student"].get(metric) is not None]
    lines = -(-len(shown) // COLUMNS)
    width, height = LABELS + PANEL[0] * COLUMNS, PANEL[1] * lines
    figure = Figure(figsize=(width, height), facecolor="white")
    inside = {"left": LABELS / width, "right": 1 - 0.1 / width, "top": 1 - 0.28 / height, "bottom": 0.3 / height}
    panels = figure.subplots(
        lines, COLUMNS, sharey=True, squeeze=False, gridspec_kw={**inside, "hspace": 0.75, "wspace": 0.12}
    )
    for panel, metric in zip(panels.flat, shown, strict=False):
        for place, name in enumerate(names):
            value = report[name].get(metric)
            if value is None:
                continue
            low, high = (report[name].get("intervals") or {}).get(metric, (value, value))
            panel.plot([low, high], [place, place], color=COLOURS[name], lw=2, solid_capstyle="butt")
            panel.plot([value], [place], "o", color=COLOURS[name], ms=5)
        said = METRICS[metric]
        panel.set_title(f"{said.title} {said.better}", fontsize=9, loc="left", color=INK)
        panel.set_yticks(range(len(names)), [ROWS[name] for name in names])
        panel.set_ylim(-0.6, len(names) - 0.4)
        panel.locator_params(axis="x", nbins=5)
        _style(panel, "x")
    for panel in list(panels.flat)[len(shown) :]:
        panel.set_visible(False)
    return save_figure(figure, path, DPI)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    panel = figure.subplots()
    _style(panel)
    return figure, panel


def _style(panel: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    panel.tick_params(labelsize=8, colors=INK, length=2)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis=grid, alpha=0.25, lw=0.6)
    panel.set_axisbelow(True)


def _write(figure: Figure, x: float, y: float, text: str, **place: Any) -> None:
    figure.text(x, y, text, fontsize=8, color=INK, **place)
