"""How every picture of a report is coloured and written to disk."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from fdistill.core.atomic_files import atomic_write

INK = "#24292f"
BLUE = "#2563a8"
PALE_BLUE = "#a9c4e2"


def save_figure(figure: Figure, path: str | Path, dpi: int) -> Path:
    """Write the figure as a PNG to `path` in one piece and return the path; raises OSError when that fails.

    A bare `Figure` needs no `pyplot`, whose open windows and backend belong to the user.
    """
    return atomic_write(path, png(figure, dpi))


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
