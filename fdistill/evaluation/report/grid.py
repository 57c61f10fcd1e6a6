"""A picture of samples: one titled block per source, enlarged without smoothing, or scatter panels for points."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fdistill.evaluation.report.figure_file import BLUE, INK, save_figure

DPI = 100
TILE = 40  # pixels that a small image is enlarged to at least
PAGE = 950  # pixels across the page of a report
GAP = 3
TITLE = 34
MARGIN = 16


def sample_grid_figure(rows: dict[str, Tensor], path: str | Path, n_per_row: int = 10) -> Path:
    """Draw the samples of each entry under its title into a PNG at `path`, and return the path.

    Args:
        rows: title to samples. Images [n, C, H, W] in [-1, 1], a block per entry: three channels are drawn
            as colour, otherwise the first one as grey. Points [n, d] become scatter panels of the first two
            coordinates, or histograms for d = 1, on shared axes.
        path: the file to write; missing folders are made.
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
    return save_figure(figure, path, DPI)


def _images_figure(rows: dict[str, Tensor], n_per_row: int) -> Figure:
    """Lay the blocks out pixel by pixel, so that no image is resampled; two side by side where a page has room."""
    blocks = {title: image_block(images, n_per_row) for title, images in rows.items()}
    column = max(300, *(block.shape[1] for block in blocks.values())) + MARGIN
    across = 2 if len(blocks) > 1 and 2 * column + MARGIN <= PAGE else 1
    names = list(blocks)
    lines = [names[i : i + across] for i in range(0, len(names), across)]
    heights = [TITLE + max(blocks[title].shape[0] for title in line) + MARGIN for line in lines]
    width, height = across * column + MARGIN, sum(heights)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    top = height
    for line, line_height in zip(lines, heights, strict=True):
        for i, title in enumerate(line):
            left, ceiling = MARGIN + i * column, top - TITLE
            figure.text(left / width, (ceiling + 9) / height, title, fontsize=10, color=INK, va="bottom")
            figure.figimage(blocks[title], xo=left, yo=ceiling - blocks[title].shape[0], origin="upper")
        top -= line_height
    return figure


def image_block(images: Tensor, n_per_row: int) -> np.ndarray:
    """Return images [n, C, H, W] in rows on white, uint8 [height, width, 3]."""
    images = (images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)).nan_to_num(-1)
    scale = -(-TILE // max(images.shape[2:]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, _, height, width = images.shape
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    columns = min(n_per_row, n)
    lines = -(-n // columns)
    block = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        y, x = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        block[y : y + height, x : x + width] = picture
    return block


def _points_figure(rows: dict[str, Tensor]) -> Figure:
    """Draw one panel per entry, all on the same axes."""
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(3.2 * columns, 3.4 * lines), facecolor="white", layout=layout)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    low, high = point_limits(torch.cat([points[:, :2] for points in rows.values()]))
    for panel, (title, points) in zip(panels, rows.items(), strict=False):
        panel.set_title(title, fontsize=10, color=INK, loc="left")
        panel.set_xlim(low, high)
        if points.shape[1] == 1:
            panel.hist(points[:, 0].numpy(), bins=np.linspace(low, high, 61), density=True, color=BLUE)
        else:
            size = float(np.clip(3000 / len(points), 2, 14))
            panel.scatter(points[:, 0], points[:, 1], s=size, alpha=0.45, color=BLUE, linewidths=0)
            panel.set_ylim(low, high)
            panel.set_aspect("equal")
        panel.tick_params(labelsize=8, colors=INK, length=2)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(figure.axes)[len(rows) :]:
        panel.set_visible(False)
    return figure


def point_limits(points: Tensor) -> tuple[float, float]:
    """Return axis limits around all finite points but the farthest in a thousand, with a margin."""
    flat = points.flatten()
    values = flat[flat.isfinite()].numpy()
    if len(values) == 0:
        return -1.0, 1.0
    low, high = np.quantile(values, [0.0005, 0.9995])
    margin = 0.08 * max(high - low, 1e-3)
    return float(low - margin), float(high + margin)
