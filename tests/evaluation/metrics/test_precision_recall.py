"""Truths about precision and recall; reference values by torch-fidelity 0.4.0 (closed balls) and prdc 0.2 (open)."""

import numpy as np
import pytest
import torch

from fdistill.evaluation.metrics import PrecisionRecall, inside_manifolds, neighbours, precision_recall


@pytest.fixture(scope="module")
def pair():
    generator = np.random.default_rng(0)
    real, fake = generator.standard_normal((500, 16)), generator.standard_normal((500, 16))
    return torch.from_numpy(fake), torch.from_numpy(real)


def test_of_equal_laws_agrees_with_torch_fidelity(pair):
    assert precision_recall(*pair) == pytest.approx((0.796, 0.760), abs=1e-12)


def test_of_a_shrunk_law_agrees_with_torch_fidelity(pair):
    fake, real = pair
    assert precision_recall(0.5 * fake, real) == pytest.approx((1.0, 0.010), abs=1e-12)


def test_of_open_balls_agrees_with_prdc(pair):
    fake, real = pair
    assert precision_recall(fake, real, k=5, strict=True) == pytest.approx((0.878, 0.854), abs=1e-12)
    assert precision_recall(0.5 * fake, real, k=5, strict=True) == pytest.approx((1.0, 0.032), abs=1e-12)


@pytest.mark.parametrize("strict", [False, True])
def test_of_a_set_to_itself_is_one(pair, strict):
    assert precision_recall(pair[1], pair[1], strict=strict) == (1, 1)


def test_swapping_the_sets_swaps_the_numbers(pair):
    fake, real = pair
    assert precision_recall(real, fake) == precision_recall(fake, real)[::-1]


@pytest.mark.parametrize("rows", [1, 7, 136, 137])
def test_strips_of_rows_do_not_change_the_value(monkeypatch, pair, rows):
    fake, real = pair[0][:137], pair[1][:90]
    whole = precision_recall(fake, real)
    monkeypatch.setitem(neighbours.STRIP, "cpu", 0)
    monkeypatch.setattr(neighbours, "LEAST_ROWS", rows)
    assert precision_recall(fake, real) == whole


def test_a_radius_reaches_to_the_kth_other_point_and_includes_its_end():
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    end = torch.tensor([[4.0], [5.0]])
    # k = 1: each ball reaches 1, so that 4 lies on the edge of the ball around 3 and 5 outside; only 3 is within 1 of 4
    assert precision_recall(end, line, k=1) == (0.5, 0.25)
    assert precision_recall(end, line, k=1, strict=True) == (0, 0)


def test_repeated_points_count_as_neighbours():
    same = torch.zeros(5, 2)
    assert precision_recall(same, same) == (1, 1)
    assert precision_recall(same + 1e-9, same) == (0, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_constant_features_fill_closed_balls_of_radius_zero_and_open_ones_not(value):
    same = torch.full((6, 7), value, dtype=torch.float64)
    assert precision_recall(same, same) == (1, 1)
    assert precision_recall(same, same, strict=True) == (0, 0)


def test_rotation_translation_and_scale_change_nothing(pair):
    fake, real = pair
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    assert precision_recall(3 * fake @ turn + 1, 3 * real @ turn + 1) == precision_recall(fake, real)


def test_dropping_a_mode_costs_its_share_of_recall_and_no_precision():
    draw = torch.randn(2, 400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = draw[0] + 100 * (torch.arange(400) % 4)[:, None]
    fake = draw[1] + 100 * (torch.arange(400) % 3)[:, None]
    inside = inside_manifolds(fake, real)
    assert not inside.reference[torch.arange(400) % 4 == 3].any()
    assert precision_recall(fake, real).recall == inside.reference[torch.arange(400) % 4 < 3].double().sum() / 400
    assert precision_recall(fake, real).precision > 0.9


def test_too_few_samples_and_wrong_arguments_raise(pair):
    fake, real = pair
    with pytest.raises(ValueError, match="samples"):
        precision_recall(fake[:3], real)
    with pytest.raises(ValueError, match="counts"):
        precision_recall(fake, real, k=0)
    with pytest.raises(ValueError, match="counts"):
        PrecisionRecall(k=0)
