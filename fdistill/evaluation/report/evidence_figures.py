"""Pictures that show why a generator's numbers are what they are: spectra, classes, copies, intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fdistill.evaluation.report.figure_file import BLUE, new_figure, save_figure, styled
from fdistill.evaluation.report.grid import compared_grid_figure
from fdistill.evaluation.report.table import METRICS, ROWS

COLOURS = {"floor": "#6b7280", "teacher": "#d1571d", "student": BLUE, "class_gaussian": "#2a8a4a"}
SMALLEST_SHARE = 1e-6
BAR = 0.26  # of the distance of two classes
COLUMNS = 4
PANEL = (2.7, 1.4)  # inches, heading and ticks included
LABELS = 1.5  # inches, for the names of the rows


@styled
def spectra_figure(spectra: Mapping[str, Tensor], path: str | Path) -> Path:
    """Draw the falling eigenvalue shares of each row's Vendi kernel over their rank into a PNG; return the path.

    Args:
        spectra: row of a report to shares [r], falling, as `vendi_spectrum` returns them; at least one.
    """
    figure = new_figure(6.4, 3.6)
    panel = figure.subplots()
    panel.grid(False, axis="x")
    for name in (row for row in ROWS if row in spectra):
        values = spectra[name].double().cpu().numpy()
        marker = "o" if len(values) <= 64 else None
        rank = np.arange(1, len(values) + 1)
        panel.plot(rank, values, color=COLOURS[name], lw=1.5, marker=marker, ms=3, label=ROWS[name])
    smallest = min(float(shares.min()) for shares in spectra.values())
    panel.set(xlabel="direction, by its share", ylabel="share of the kernel", yscale="log")
    panel.set_ylim(bottom=max(smallest / 2, SMALLEST_SHARE))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend()
    return save_figure(figure, path)


@styled
def class_bars_figure(by_class: Mapping[str, Mapping[str, Sequence[float | None]]], path: str | Path) -> Path:
    """Draw precision and recall of every class, the rows of a report side by side, into a PNG; return the path.

    Args:
        by_class: row of a report to {"precision", "recall"}, a share or None for each class; at least one row.
    """
    count = len(next(iter(by_class.values()))["recall"])
    figure = new_figure(max(6.4, 0.36 * count + 1.6), 4.6)
    panels = figure.subplots(2, 1, sharex=True)
    for panel, metric in zip(panels, ("precision", "recall"), strict=True):
        for i, (name, values) in enumerate(by_class.items()):
            place = np.arange(count) + BAR * (i - (len(by_class) - 1) / 2)
            heights = [np.nan if value is None else value for value in values[metric]]
            panel.bar(place, heights, BAR, color=COLOURS[name], label=ROWS[name])
        panel.set(title=METRICS[metric].title, ylim=(0, 1))
        panel.grid(False, axis="x")
    panels[1].set(xticks=range(count), xlabel="class")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return save_figure(figure, path)


def copies_figure(generated: Tensor, training: Tensor, ratio: Tensor, path: str | Path) -> Path:
    """Draw samples above their nearest training images, the ratio of distances below each pair, into a PNG.

    Args:
        generated: images [c, C, H, W] in [-1, 1], c >= 1.
        training: the nearest training image of each, [c, C, H, W].
        ratio: distance to it over that to the second nearest, [c].
    """
    numbers = [f"{value:.2f}".replace("0.", ".", 1) for value in ratio.tolist()]
    rows = {"student": generated, "nearest\ntraining image": training}
    return compared_grid_figure(rows, "", path, below=numbers)


@styled
def intervals_figure(report: Mapping[str, Any], path: str | Path) -> Path:
    """Draw every metric of a report as dots, one for each row, with whiskers where it has an interval, into a PNG.

    Args:
        report: with a student row.
    """
    names = [name for name in reversed(ROWS) if report.get(name)]
    shown = [metric for metric in METRICS if report["student"].get(metric) is not None]
    lines = -(-len(shown) // COLUMNS)
    width, height = LABELS + PANEL[0] * COLUMNS, PANEL[1] * lines
    figure = Figure(figsize=(width, height))
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
        panel.set(title=f"{METRICS[metric].title} {METRICS[metric].better}", ylim=(-0.6, len(names) - 0.4))
        panel.set_yticks(range(len(names)), [ROWS[name] for name in names])
        panel.locator_params(axis="x", nbins=5)
        panel.grid(False, axis="y")
    for panel in list(panels.flat)[len(shown) :]:
        panel.set_visible(False)
    return save_figure(figure, path)
