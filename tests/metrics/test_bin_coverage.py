"""Cells of the real data that generated samples reach."""

import pytest
import torch

from fdistill.metrics import BinCoverage, bin_coverage
from fdistill.random_streams import generator_for


def mixture(n, seed, modes=8, kept=8):
    angle = torch.arange(modes) * 2 * torch.pi / modes
    centre = 5 * torch.stack([angle.cos(), angle.sin()], dim=1).double()
    generator = generator_for(seed)
    label = torch.randint(0, kept, (n,), generator=generator)
    return centre[label] + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def test_another_draw_of_the_same_law_covers_every_cell():
    coverage, distance = bin_coverage(mixture(1000, 0), mixture(1000, 1))
    assert coverage == 1
    assert distance < 2 * (50 / (torch.pi * 1000)) ** 0.5


def test_the_reference_itself_has_the_reference_s_weights():
    real = mixture(400, 0)
    assert bin_coverage(real, real) == (1.0, 0.0)


@pytest.mark.parametrize("kept", [2, 4, 6])
def test_dropped_modes_leave_their_share_of_the_cells_empty(kept):
    coverage, distance = bin_coverage(mixture(2000, 0, kept=kept), mixture(2000, 1))
    assert float(coverage) == pytest.approx(kept / 8, abs=0.1)
    assert float(distance) == pytest.approx(1 - kept / 8, abs=0.1)


def test_identical_samples_reach_one_cell_and_constant_real_samples_have_one():
    real = mixture(400, 0)
    assert float(bin_coverage(real[:1].expand(400, 2), real).bin_coverage) == pytest.approx(1 / 20)
    assert bin_coverage(real, torch.ones(40, 2)) == (1.0, 0.0)


def test_the_metric_is_the_function():
    metric = BinCoverage()
    for part in mixture(300, 0).split(70):
        metric.update(part, real=False)
    metric.update(mixture(400, 1), real=True)
    assert metric.compute() == bin_coverage(mixture(300, 0), mixture(400, 1))._asdict()
