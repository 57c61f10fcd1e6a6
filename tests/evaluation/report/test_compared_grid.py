"""Images that are compared stand in one column, and are drawn pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.evaluation.report.grid import GAP, NAMES, TILE, TITLE, compared_grid_figure


def constant(*values):
    """One image of a single grey each."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def tiles(path, columns, rows, top=TITLE):
    """Greys in the middle of the tiles that lie where they should."""
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    middle = TILE // 2
    return [
        [int(pixels[top + row * (TILE + GAP) + middle, NAMES + column * (TILE + GAP) + middle]) for column in columns]
        for row in rows
    ]


def test_column_i_holds_image_i_of_every_source_in_the_given_order(tmp_path):
    rows = {"student": constant(-1.0, 0.0, 1.0), "teacher": constant(1.0, -1.0, 0.0)}
    path = compared_grid_figure(rows, "after 3 turns", tmp_path / "new" / "grid.png")
    assert tiles(path, range(3), range(2)) == [[0, 128, 255], [255, 0, 128]]


def test_more_images_than_fit_go_into_a_further_block_of_all_sources(tmp_path):
    rows = {"student": constant(-1.0, 0.0, 1.0), "teacher": constant(1.0, -1.0, 0.0)}
    whole = compared_grid_figure(rows, "", tmp_path / "whole.png", n_per_row=3)
    split = compared_grid_figure(rows, "", tmp_path / "split.png", n_per_row=2)
    assert tiles(split, range(2), range(2)) == [row[:2] for row in tiles(whole, range(3), range(2))]
    below = Image.open(split).height - Image.open(whole).height
    assert tiles(split, [0], range(2), TITLE + below) == [[255], [128]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({}, "entry"),
        ({"a": torch.zeros(0, 1, 8, 8)}, "entry"),
        ({"a": torch.zeros(4, 2)}, "images"),
        ({"a": torch.zeros(3, 1, 8, 8), "b": torch.zeros(4, 1, 8, 8)}, "size"),
        ({"a": torch.zeros(3, 1, 8, 8), "b": torch.zeros(3, 1, 9, 9)}, "size"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(rows, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        compared_grid_figure(rows, "", tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
