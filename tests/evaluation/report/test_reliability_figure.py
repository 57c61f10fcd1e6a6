"""The picture of a log ratio's reliability shows a point for every bin, and is drawn where no line can be."""

import numpy as np
import pytest
import torch
from PIL import Image

from fdistill.evaluation.ratio_calibration import NoiseGroup, reliability
from fdistill.evaluation.report.figure_file import BLUE
from fdistill.evaluation.report.reliability_figure import reliability_figure

pytestmark = pytest.mark.system  # seconds, too many for make check


def group(fake, real, num_bins):
    return NoiseGroup(0.1, 1.0, reliability(fake, real, num_bins), fake, real)


def blue_pixels(path):
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (picture == [int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum()


def test_more_bins_and_more_groups_are_more_to_see(tmp_path):
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    few, many = (group(noise[0] - 0.5, noise[1] + 0.5, bins) for bins in (2, 12))
    pictures = {"few": [few], "many": [many], "two": [many, many]}
    paths = {name: reliability_figure(groups, name, tmp_path / f"{name}.png") for name, groups in pictures.items()}
    seen = {name: blue_pixels(path) for name, path in paths.items()}
    assert seen["few"] < seen["many"] < seen["two"]
    assert Image.open(paths["two"]).width > Image.open(paths["many"]).width


def test_a_discriminator_that_knows_nothing_can_be_drawn(tmp_path):
    path = reliability_figure([group(torch.zeros(9), torch.zeros(9), 5)], "nothing", tmp_path / "picture.png")
    assert blue_pixels(path) > 0


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="group"):
        reliability_figure([], "none", tmp_path / "picture.png")
