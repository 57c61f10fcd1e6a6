"""What the length of an average is worth: a metric over the length, as a picture and as a table."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from fdistill.evaluation.report.figure_file import BLUE, INK, PALE_BLUE, new_figure, save_figure, styled
from fdistill.evaluation.report.table import METRICS, MISSING

COLOURS = {"choosing": PALE_BLUE, "reporting": BLUE}
LABELLED_APART = 1.2  # ratio of two lengths, below which the second gets no number on the axis


@styled
def length_figure(report: dict[str, Any], path: str | Path) -> Path:
    """Draw the metric over the length for both halves, the EMA as a dashed line of each, and a ring at the best.

    Args:
        report: of `fdistill average`.
    """
    metric, rows = report["metric"], report["lengths"]
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    lengths = [row["length"] for row in rows]
    for part, colour in COLOURS.items():
        values = [row[part][metric] for row in rows]
        axes.plot(lengths, values, color=colour, lw=1.5, marker="o", ms=3.5, label=f"{part} half")
        axes.axhline(report["ema"][part][metric], color=colour, lw=1.1, ls="--", label=f"the run's EMA, {part} half")
        best = values[lengths.index(report["best"])]
        axes.plot(report["best"], best, "o", ms=10, mfc="none", mec=INK, mew=1.2)
    axes.set(xscale="log", xlabel="length of the average, sigma_rel", ylabel=_title(metric), title=_caption(report))
    axes.xaxis.set_major_locator(FixedLocator(_apart(lengths)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
    return save_figure(figure, path)


def print_lengths(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a row for each length and one for the EMA to `console`, standard output by default."""
    console = console or Console()
    metric = report["metric"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{_title(metric)}. {_caption(report)}", title_justify="left", padding=0)
    for i, heading in enumerate(("Length", "Residual", "Choosing half", "Reporting half", "Less the EMA's")):
        table.add_column(heading, justify="right" if i else "left", min_width=10)
    for row in report["lengths"]:
        error = row["against_ema_error"]
        difference = f"{row['against_ema']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
        values = (f"{row[part][metric]:.4f}" for part in COLOURS)
        chosen = row["length"] == report["best"]
        cells = (f"{row['length']:.3g}{' chosen' * chosen}", f"{row['residual']:.4f}", *values, difference)
        table.add_row(*cells, style="bold" if chosen else None)
    table.add_row("the run's EMA", MISSING, *(f"{report['ema'][part][metric]:.4f}" for part in COLOURS), MISSING)
    console.print(table)


def _apart(lengths: list[float]) -> list[float]:
    """Those that leave room for their numbers on a logarithmic axis."""
    kept: list[float] = []
    for length in lengths:
        if not kept or length >= LABELLED_APART * kept[-1]:
            kept.append(length)
    return kept


def _title(metric: str) -> str:
    return f"{METRICS[metric].title} {METRICS[metric].better}"


def _caption(report: dict[str, Any]) -> str:
    draws = f", mean of {report['repeats']} draws" * (report["repeats"] > 1)
    return f"After {report['updates']:,} updates, {report['n']:,} samples{draws}"
