"""Pictures of evidence show all that they are given, and pixels as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.evaluation.report.evidence_figures import (
    class_bars_figure,
    copies_figure,
    intervals_figure,
    spectra_figure,
)
from fdistill.evaluation.report.figure_file import BLUE

pytestmark = pytest.mark.system  # seconds, too many for make check


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of(picture, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (picture == wanted).all(axis=2).mean()


def test_pairs_are_the_given_images_one_above_the_other(tmp_path):
    generator = torch.Generator().manual_seed(0)
    made, real = (torch.rand(3, 1, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    picture = pixels(copies_figure(made, real, torch.linspace(0.1, 0.9, 3), tmp_path / "pairs.png"))
    corners = []
    for image in (made[2], real[2]):
        wanted = ((image + 1) * 127.5).round().permute(1, 2, 0).expand(-1, -1, 3)
        wanted = wanted.repeat_interleave(5, 0).repeat_interleave(5, 1).numpy()
        window = np.lib.stride_tricks.sliding_window_view(picture, wanted.shape)[:, :, 0]
        (corner,) = np.argwhere(abs(window - wanted).max(axis=(2, 3, 4)) <= 1)
        corners.append(corner)
    assert corners[1][0] > corners[0][0]
    assert corners[1][1] == corners[0][1]


def test_one_pair_is_a_picture(tmp_path):
    assert copies_figure(
        torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), torch.zeros(1), tmp_path / "a.png"
    ).is_file()


def test_taller_bars_are_more_of_their_colour(tmp_path):
    def drawn(value, name):
        bars = {"student": {"precision": [value, None], "recall": [value, value]}}
        return share_of(pixels(class_bars_figure(bars, tmp_path / name)), BLUE)

    assert drawn(1.0, "high.png") > 1.6 * drawn(0.5, "low.png")


def test_spectra_of_different_lengths_share_axes(tmp_path):
    spectra = {"student": torch.tensor([1.0]), "floor": torch.full((300,), 1 / 300)}
    assert share_of(pixels(spectra_figure(spectra, tmp_path / "spectra.png")), BLUE) > 0


@pytest.mark.parametrize("intervals", [{}, {"recall": [0.1, 0.9]}])
def test_a_whisker_is_drawn_where_there_is_an_interval(intervals, tmp_path):
    report = {"student": {"recall": 0.5, "precision": None, "intervals": intervals}, "floor": {"recall": 1.0}}
    picture = pixels(intervals_figure(report, tmp_path / "intervals.png"))
    wanted = [int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]
    columns = np.flatnonzero((picture == wanted).all(axis=2).any(axis=0))
    assert (np.ptp(columns) > 100) == bool(intervals)


def test_more_metrics_make_more_lines_of_panels(tmp_path):
    few = intervals_figure({"student": {"recall": 0.5}}, tmp_path / "few.png")
    names = ("recall", "precision", "density", "coverage", "vendi")
    more = intervals_figure({"student": dict.fromkeys(names, 0.5)}, tmp_path / "more.png")
    assert pixels(more).shape[0] > 1.5 * pixels(few).shape[0]
