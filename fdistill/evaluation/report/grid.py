"""Pictures of samples, enlarged without smoothing: a titled block per source, or image i of every one in a column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fdistill.evaluation.report.figure_file import BLUE, new_figure, save_figure, styled
from fdistill.sampling.pictures import tiled

GRID_DPI = 100
TILE = 40  # pixels that a small image is enlarged to at least
PAGE = 950  # pixels across the page of a report
GAP = 3
TITLE = 34
MARGIN = 16
NAMES = 110  # pixels on the left, for the names of the rows
BELOW = 20  # pixels for a number below a column
BETWEEN = 14  # pixels between two blocks of rows


@styled
def sample_grid_figure(rows: dict[str, Tensor], path: str | Path, n_per_row: int = 10) -> Path:
    """Draw the samples of each entry under its title into a PNG at `path`, and return the path.

    Args:
        rows: title to samples. Images [n, C, H, W] in [-1, 1], a block per entry: three channels are drawn
            as colour, otherwise the first one as grey. Points [n, d] become scatter panels of the first two
            coordinates, or histograms for d = 1, on shared axes.
        n_per_row: images side by side.

    Raises:
        ValueError: without entries, for an empty one, or for images and points mixed.
    """
    if not rows or any(len(samples) == 0 for samples in rows.values()):
        raise ValueError(f"a sample picture needs samples in every entry: got { {k: len(v) for k, v in rows.items()} }")
    ranks = {samples.ndim for samples in rows.values()}
    if ranks not in ({2}, {4}):
        raise ValueError(
            f"a sample picture shows images [n, C, H, W] or points [n, d]: got {sorted(ranks)} dimensions; "
            "draw one kind per picture"
        )
    rows = {title: samples.detach().float().cpu() for title, samples in rows.items()}
    figure = _points_figure(rows) if ranks == {2} else _images_figure(rows, max(1, n_per_row))
    return save_figure(figure, path, GRID_DPI)


@styled
def compared_grid_figure(
    rows: dict[str, Tensor], title: str, path: str | Path, n_per_row: int = 10, below: Sequence[str] = ()
) -> Path:
    """Draw image i of every entry in one column, the first entry on top, into a PNG at `path`; return the path.

    Args:
        rows: name to images [n, C, H, W] in [-1, 1], n and H the same for all; drawn as `sample_grid_figure` does.
        title: above them.
        n_per_row: images side by side; more go into further blocks of rows below.
        below: words under each column; none where not given.

    Raises:
        ValueError: without entries, or for entries that are empty, no images, or of different shapes.
    """
    shapes = {name: list(images.shape) for name, images in rows.items()}
    if not rows or any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"a comparison shows images [n, C, H, W], n > 0, in every entry: got {shapes}")
    if len({(shape[0], *shape[2:]) for shape in shapes.values()}) > 1:
        raise ValueError(f"compared images stand in one column: expected as many of one size in each, got {shapes}")
    blocks = [
        {
            name: image_block(images[i : i + n_per_row].detach().float().cpu(), n_per_row)
            for name, images in rows.items()
        }
        for i in range(0, next(iter(shapes.values()))[0], n_per_row)
    ]
    line_height, line_width = next(iter(blocks[0].values())).shape[:2]
    block_height = len(rows) * (line_height + GAP) - GAP + (BELOW if below else 0)
    width = NAMES + max(line_width, 60) + MARGIN  # room for the title
    height = TITLE + len(blocks) * (block_height + BETWEEN) - BETWEEN + MARGIN
    figure = _of_pixels(width, height)
    figure.text(MARGIN / width, (height - TITLE + 9) / height, title, fontsize=10, va="bottom")
    step = (line_width + GAP) / min(n_per_row, shapes[next(iter(rows))][0])
    for number, block in enumerate(blocks):
        top = height - TITLE - number * (block_height + BETWEEN)
        for name, line in block.items():
            middle = (top - line_height / 2) / height
            figure.text((NAMES - 8) / width, middle, name, fontsize=8, ha="right", va="center")
            figure.figimage(line, xo=NAMES, yo=top - line_height, origin="upper")
            top -= line_height + GAP
        for i, words in enumerate(below[number * n_per_row :][:n_per_row]):
            middle = NAMES + i * step + (step - GAP) / 2
            figure.text(middle / width, (top - 2) / height, words, fontsize=8, ha="center", va="top")
    return save_figure(figure, path, GRID_DPI)


def image_block(images: Tensor, n_per_row: int) -> np.ndarray:
    """Return images [n, C, H, W] in rows on white, uint8 [height, width, 3]."""
    images = (images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)).nan_to_num(-1)
    scale = -(-TILE // max(images.shape[2:]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return tiled(pixels, min(n_per_row, len(images)), GAP)


def draw_points(axes: Axes, points: Tensor, among: Tensor, colour: str = BLUE) -> None:
    """Scatter two coordinates of points [n, d], or draw their histogram for d = 1, within the limits of `among`."""
    low, high = _limits(among[:, :2])
    axes.set_xlim(low, high)
    axes.grid(False)
    if points.shape[1] == 1:
        axes.hist(points[:, 0].numpy(), bins=np.linspace(low, high, 61).tolist(), density=True, color=colour)
    else:
        size = float(np.clip(3000 / len(points), 2, 14))
        axes.scatter(points[:, 0], points[:, 1], s=size, alpha=0.45, color=colour, linewidths=0)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")


def _of_pixels(width: int, height: int) -> Figure:
    """A figure in which no image is resampled."""
    return Figure(figsize=(width / GRID_DPI, height / GRID_DPI), dpi=GRID_DPI)


def _images_figure(rows: dict[str, Tensor], n_per_row: int) -> Figure:
    """Lay the blocks out pixel by pixel; two side by side where a page has room."""
    blocks = {title: image_block(images, n_per_row) for title, images in rows.items()}
    column = max(300, *(block.shape[1] for block in blocks.values())) + MARGIN
    across = 2 if len(blocks) > 1 and 2 * column + MARGIN <= PAGE else 1
    names = list(blocks)
    lines = [names[i : i + across] for i in range(0, len(names), across)]
    heights = [TITLE + max(blocks[title].shape[0] for title in line) + MARGIN for line in lines]
    width, height = across * column + MARGIN, sum(heights)
    figure, top = _of_pixels(width, height), height
    for line, line_height in zip(lines, heights, strict=True):
        for i, title in enumerate(line):
            left, ceiling = MARGIN + i * column, top - TITLE
            figure.text(left / width, (ceiling + 9) / height, title, fontsize=10, va="bottom")
            figure.figimage(blocks[title], xo=left, yo=ceiling - blocks[title].shape[0], origin="upper")
        top -= line_height
    return figure


def _points_figure(rows: dict[str, Tensor]) -> Figure:
    """Draw one panel per entry, all on the same axes."""
    columns = min(len(rows), 4)
    figure = new_figure(3.2 * columns, 3.4 * -(-len(rows) // columns))
    panels = figure.subplots(-(-len(rows) // columns), columns, squeeze=False, sharex=True, sharey=True).flat
    together = torch.cat([points[:, :2] for points in rows.values()])
    for panel, (title, points) in zip(panels, rows.items(), strict=False):
        panel.set_title(title, fontsize=10)
        draw_points(panel, points, together)
    for panel in figure.axes[len(rows) :]:
        panel.set_visible(False)
    return figure


def _limits(points: Tensor) -> tuple[float, float]:
    """Return axis limits around all finite points but the farthest in a thousand, with a margin."""
    values = points[points.isfinite()].numpy()
    if len(values) == 0:
        return -1.0, 1.0
    low, high = np.quantile(values, [0.0005, 0.9995])
    margin = 0.08 * max(high - low, 1e-3)
    return float(low - margin), float(high + margin)
