"""Diversity of the samples of one condition: limits, and that conditions do not see each other."""

import pytest
import torch

from fdistill.evaluation.metrics import condition_diversity, in_batch_similarity, vendi_score


def test_identical_samples_count_one_and_orthogonal_ones_all():
    same = torch.tensor([[3.0, 4.0, 0.0, 0.0]]).repeat(4, 1)
    found = condition_diversity(torch.stack([same, torch.eye(4) * 2]))
    torch.testing.assert_close(found.similarity, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.vendi, torch.tensor([1.0, 4.0], dtype=torch.float64))


def test_two_pictures_in_equal_parts_count_two():
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 1)
    found = condition_diversity(two[None])
    torch.testing.assert_close(found.vendi, torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(found.similarity, torch.tensor([(16 * 16 / 2 - 16) / (16 * 15)], dtype=torch.float64))


def test_each_condition_has_the_numbers_of_its_own_samples_about_the_centre():
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    centre = torch.full((7,), 0.5)
    found = condition_diversity(x, centre)
    for samples, similarity, vendi in zip(x, found.similarity, found.vendi, strict=True):
        assert float(similarity) == pytest.approx(float(in_batch_similarity(samples - centre)), rel=1e-6)
        assert float(vendi) == pytest.approx(float(vendi_score(samples, centre=centre)), rel=1e-6)


def test_what_is_no_set_of_conditions_is_refused():
    with pytest.raises(ValueError, match="conditions"):
        condition_diversity(torch.ones(4, 3))
    with pytest.raises(ValueError, match="at least 2"):
        condition_diversity(torch.ones(4, 1, 3))
    with pytest.raises(ValueError, match="finite"):
        condition_diversity(torch.full((1, 2, 3), torch.nan))
