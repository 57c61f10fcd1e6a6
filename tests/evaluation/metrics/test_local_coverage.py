"""Neighbourhoods of real samples that generated ones reach."""

import pytest
import torch

from fdistill.core.random import generator_for
from fdistill.evaluation.metrics import is_covered, local_coverage


def mixture(n, seed, modes=8, kept=8):
    angle = torch.arange(modes) * 2 * torch.pi / modes
    centre = 5 * torch.stack([angle.cos(), angle.sin()], dim=1).double()
    generator = generator_for(seed)
    label = torch.randint(0, kept, (n,), generator=generator)
    return centre[label] + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64), label


def test_another_draw_of_the_same_law_covers_all_but_chance():
    for seed in range(5):
        assert local_coverage(mixture(1000, 2 * seed)[0], mixture(1000, 2 * seed + 1)[0]) > 0.98


def test_unequal_numbers_are_compared_by_share():
    assert local_coverage(mixture(200, 0)[0], mixture(1000, 1)[0]) > 0.9
    assert local_coverage(mixture(1000, 0)[0], mixture(200, 1)[0]) > 0.98


@pytest.mark.parametrize("kept", [2, 4, 7])
def test_dropped_modes_are_deserted_and_no_others(kept):
    real, label = mixture(2000, 1)
    covered = is_covered(mixture(2000, 0, kept=kept)[0], real)
    assert not covered[label >= kept].any()
    assert covered[label < kept].double().mean() > 0.98


def test_a_copy_of_the_real_samples_covers_them_all():
    real = mixture(400, 0)[0]
    assert local_coverage(real, real) == 1


def test_one_place_covers_only_its_own_neighbourhood():
    real = mixture(400, 0)[0]
    assert float(local_coverage(real[:1].expand(400, 2), real)) < 0.15
    assert local_coverage(torch.ones(40, 2), torch.ones(40, 2)) == 1


def test_the_numbering_of_the_samples_does_not_matter_where_distances_repeat():
    real, made = torch.randint(0, 3, (2, 60, 2), generator=generator_for(0)).double()
    order = torch.randperm(60, generator=generator_for(1))
    assert torch.equal(is_covered(made, real)[order], is_covered(made[order.flip(0)], real[order]))


def test_one_real_sample_has_no_neighbours():
    (made, _), (real, _) = mixture(300, 0), mixture(400, 1)
    with pytest.raises(ValueError, match="real"):
        is_covered(made, real[:1])
