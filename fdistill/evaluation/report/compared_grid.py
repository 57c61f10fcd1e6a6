"""Images above what they are to be compared with: one column an image, one row a source."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from fdistill.evaluation.report.figure_file import INK, save_figure
from fdistill.evaluation.report.grid import DPI, GAP, MARGIN, TITLE, image_block

NAMES = 110  # pixels on the left, for the names of the rows
BETWEEN = 14  # pixels between two blocks of rows


def compared_grid_figure(rows: dict[str, Tensor], title: str, path: str | Path, n_per_row: int = 10) -> Path:
    """Draw image i of every entry in one column, the first entry on top, into a PNG at `path`; return the path.

    Args:
        rows: name to images [n, C, H, W] in [-1, 1], n and H the same for all; drawn as `sample_grid_figure` does.
        title: above them.
        path: the file to write; missing folders are made.
        n_per_row: images side by side; more go into further blocks of rows below.

    Raises:
        ValueError: without entries, or for entries that are empty, no images, or of different shapes.
    """
    shapes = {name: list(images.shape) for name, images in rows.items()}
    if not rows or any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"a comparison shows images [n, C, H, W], n > 0, in every entry: got {shapes}")
    if len({(shape[0], *shape[2:]) for shape in shapes.values()}) > 1:
        raise ValueError(f"compared images stand in one column: expected as many of one size in each, got {shapes}")
    figure = _stacked_figure({name: images.detach().float().cpu() for name, images in rows.items()}, title, n_per_row)
    return save_figure(figure, path, DPI)


def _stacked_figure(rows: dict[str, Tensor], title: str, n_per_row: int) -> Figure:
    """Lay the lines out pixel by pixel, so that no image is resampled."""
    n = len(next(iter(rows.values())))
    blocks = [
        {name: image_block(images[i : i + n_per_row], n_per_row) for name, images in rows.items()}
        for i in range(0, n, n_per_row)
    ]
    line_height, line_width = next(iter(blocks[0].values())).shape[:2]
    block_height = len(rows) * (line_height + GAP) - GAP
    width = NAMES + max(line_width, 60) + MARGIN  # room for the title
    height = TITLE + len(blocks) * (block_height + BETWEEN) - BETWEEN + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    figure.text(MARGIN / width, (height - TITLE + 9) / height, title, fontsize=10, color=INK, va="bottom")
    top = height - TITLE
    for block in blocks:
        for name, line in block.items():
            middle = (top - line_height / 2) / height
            figure.text((NAMES - 8) / width, middle, name, fontsize=8, color=INK, ha="right", va="center")
            figure.figimage(line, xo=NAMES, yo=top - line_height, origin="upper")
            top -= line_height + GAP
        top -= BETWEEN - GAP
    return figure
