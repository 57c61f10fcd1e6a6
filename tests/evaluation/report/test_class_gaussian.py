"""The per-class Gaussian has the mean and covariance of its class."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.evaluation.report.class_gaussian import per_class_gaussian


def training_points():
    generator = torch.Generator().manual_seed(0)
    mixes = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(200) % 2
    points = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    return torch.einsum("nd,nde->ne", points, mixes[labels]) + 3 * labels[:, None], labels


def test_each_class_keeps_its_mean_and_covariance():
    x, labels = training_points()
    sample = per_class_gaussian(x, labels, 2)
    for c in (0, 1):
        drawn = sample(torch.full((40_000,), c), torch.Generator().manual_seed(1))
        real = x[labels == c]
        spread = real.var(0).max()
        assert_close(drawn.mean(0), real.mean(0), rtol=0, atol=0.03 * spread.sqrt().item())
        assert_close(torch.cov(drawn.T), torch.cov(real.T), rtol=0, atol=0.04 * spread.item())


def test_fewer_samples_than_dimensions_stay_in_their_span():
    x = torch.zeros(4, 50)
    x[:, :3] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    drawn = per_class_gaussian(x, None, None)(torch.zeros(1000), torch.Generator().manual_seed(0))
    assert drawn[:, 3:].abs().max() == 0
    assert torch.linalg.matrix_rank(drawn - x.mean(0)) == 3


def test_images_stay_in_their_range_and_points_do_not():
    images = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    drawn = per_class_gaussian(images, None, None)(torch.zeros(100), torch.Generator().manual_seed(0))
    assert drawn.shape == (100, 1, 4, 4)
    assert drawn.abs().max() == 1
    points = per_class_gaussian(5 * images.flatten(1), None, None)(torch.zeros(100), torch.Generator().manual_seed(0))
    assert points.abs().max() > 5


def test_the_generator_alone_decides_the_samples():
    x, labels = training_points()
    wanted = torch.tensor([1, 0, 0, 1])
    sample = per_class_gaussian(x, labels, 2, torch.Generator().manual_seed(5))
    first, second = sample(wanted, torch.Generator().manual_seed(5)), sample(wanted)
    assert torch.equal(first, second)
    assert not torch.equal(sample(wanted), first)


def test_a_class_of_one_sample_repeats_it_and_an_empty_one_raises():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    sample = per_class_gaussian(x, torch.tensor([0, 2, 2]), 3)
    assert torch.equal(sample(torch.tensor([0, 0]), torch.Generator()), x[[0, 0]])
    with pytest.raises(ValueError, match="class"):
        sample(torch.tensor([0, 1]), torch.Generator())
    with pytest.raises(ValueError, match="labels"):
        sample(torch.tensor([3]), torch.Generator())
