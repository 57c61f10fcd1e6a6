"""Pictures hold the pixels that were given, and curves survive what a crash leaves behind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.evaluation.report.curves import read_run_log
from fdistill.evaluation.report.grid import sample_grid_figure

pytestmark = pytest.mark.system  # seconds, too many for make check


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_images_are_enlarged_without_smoothing(tmp_path):
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = pixels(sample_grid_figure({"Student, 1 evaluation": image}, tmp_path / "new" / "grid.png"))
    wanted = ((image[0] + 1) * 127.5).round().permute(1, 2, 0).repeat_interleave(5, 0).repeat_interleave(5, 1).numpy()
    window = np.lib.stride_tricks.sliding_window_view(picture, wanted.shape)[:, :, 0]
    assert (abs(window - wanted).max(axis=(2, 3, 4)) <= 1).sum() == 1


def test_every_image_is_drawn_in_rows_of_the_asked_length(tmp_path):
    black = -torch.ones(7, 1, 8, 8)
    picture = pixels(sample_grid_figure({"a": black, "b": black[:2]}, tmp_path / "grid.png", n_per_row=3))
    assert (picture == 0).all(axis=2).sum() == 9 * 40 * 40


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_that_are_no_colour_images_show_their_first_channel_in_grey(tmp_path, channels):
    images = torch.ones(1, channels, 32, 32)
    images[:, 0] = 0
    picture = pixels(sample_grid_figure({"": images}, tmp_path / "grid.png"))
    assert {tuple(colour) for colour in picture.reshape(-1, 3)} == {(255, 255, 255), (128, 128, 128)}


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_points_are_drawn_as_panels_side_by_side(tmp_path, dimensions):
    points = torch.randn(50, dimensions, generator=torch.Generator().manual_seed(0))
    one = pixels(sample_grid_figure({"a": points}, tmp_path / "one.png"))
    three = pixels(sample_grid_figure({"a": points, "b": points, "c": points}, tmp_path / "three.png"))
    assert three.shape[1] == 3 * one.shape[1]
    assert (one.std(axis=2) > 20).sum() > 100  # coloured


def test_empty_and_mixed_entries_raise(tmp_path):
    for rows in ({}, {"a": torch.zeros(0, 1, 8, 8)}):
        with pytest.raises(ValueError, match="entry"):
            sample_grid_figure(rows, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="picture"):
        sample_grid_figure({"a": torch.zeros(3, 1, 8, 8), "b": torch.zeros(3, 2)}, tmp_path / "grid.png")


def write_lines(path, count, tail=""):
    lines = [json.dumps({"step": 10 * i, "loss/student": 1 / (1 + i), "metric/recall": 0.5}) for i in range(count)]
    path.write_text("\n".join(lines) + tail)
    return path


def test_a_torn_line_changes_nothing(tmp_path):
    whole = read_run_log(write_lines(tmp_path / "a.jsonl", 60))
    assert whole.curves["loss/student"] == ([10 * i for i in range(60)], [1 / (1 + i) for i in range(60)])
    assert read_run_log(write_lines(tmp_path / "b.jsonl", 60, tail='\n{"step": 600, "loss/stu')) == whole
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "c.jsonl").write_text("\n".join([*lines[:30], '{"step": 300, "lo', *lines[30:]]))
    assert read_run_log(tmp_path / "c.jsonl") == whole


def test_a_file_that_is_no_log_raises(tmp_path):
    (tmp_path / "readme.md").write_text("# Title\n")
    with pytest.raises(ValueError, match="curves"):
        read_run_log(tmp_path / "readme.md")
