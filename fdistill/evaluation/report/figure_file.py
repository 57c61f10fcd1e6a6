"""How every picture of a report looks, and how it is written to disk."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fdistill.core.atomic_files import atomic_write

INK = "#24292f"
BLUE = "#2563a8"
PALE_BLUE = "#a9c4e2"
RED = "#b3402a"
DPI = 110

_TICKS = {"color": INK, "labelsize": 8, "major.size": 2, "minor.size": 1}
styled = rc_context(
    {
        "figure.facecolor": "white",
        "text.color": INK,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.fontsize": 8,
        "legend.frameon": False,
        **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
    }
)
"""Decorates a function that draws and saves a figure; the settings of pyplot stay the user's."""


def new_figure(width: float, height: float, title: str = "", healthy: str = "") -> Figure:
    """A figure of so many inches, and above its axes a title and what one sees when all is well.

    A bare `Figure` needs no `pyplot`, whose open windows and backend belong to the user.
    """
    head = 0.36 * bool(title) + 0.18 * len(healthy.splitlines())
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, rect=(0, 0, 1, 1 - head / height))
    figure = Figure(figsize=(width, height), layout=layout)
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.36 / height, healthy, fontsize=8.5, va="top", linespacing=1.35)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = DPI) -> Path:
    """Write the figure as a PNG to `path` in one piece and return the path; raises OSError when that fails."""
    return atomic_write(path, png(figure, dpi))


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
