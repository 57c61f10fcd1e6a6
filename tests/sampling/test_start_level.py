"""The level that a student starts from, against the closed form of Gaussian data."""

import math

import pytest
import torch
from tiny_runs import exact

from fdistill.models.condition import Entry, takes_classes
from fdistill.sampling.start_level import denoised_variance, diverse_level
from fdistill.theory.paths import NoiseRange


class Gaussians(torch.nn.Module):
    """D of a Gaussian of deviation s around the mean of each class, in float64."""

    sample_shape = (4,)

    def __init__(self, s, means=(0.0,), takes=None, noise_range=NoiseRange()):  # noqa: B008  # a tuple
        super().__init__()
        self.s, self.noise_range = s, noise_range
        self.means = torch.tensor(means, dtype=torch.float64)
        self.takes = takes_classes(len(means) if len(means) > 1 else 0) if takes is None else takes

    def forward(self, x, sigma, condition):
        mean = self.means[condition["labels"]] if "labels" in condition else self.means[0].expand(len(x))
        x, sigma = x.double(), sigma.double()[:, None]
        return mean[:, None] + self.s**2 / (self.s**2 + sigma**2) * (x - mean[:, None])


@pytest.mark.parametrize("s", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("means", [(0.0,), (3.0,), (-5.0, 0.0, 9.0)], ids=["centred", "shifted", "classes far apart"])
def test_for_gaussian_data_it_is_the_root_of_three_times_the_deviation_within_a_class(s, means):
    assert diverse_level(Gaussians(s, means)) == pytest.approx(math.sqrt(3) * s, rel=0.006)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_the_variance_is_that_of_the_closed_form(sigma):
    s = 0.7
    expected = s**4 * sigma**2 / (s**2 + sigma**2) ** 2
    found = denoised_variance(Gaussians(s, (-5.0, 9.0)), sigma, pairs=20_000, seed=0)
    assert found == pytest.approx(expected, rel=0.02)


def test_it_is_found_for_a_denoiser_of_the_package_whatever_the_draw():
    levels = [diverse_level(exact([[2.0, -1.0]], [0.5]), seed=seed) for seed in range(3)]
    assert levels == pytest.approx([math.sqrt(3) / 2] * 3, rel=0.006)


def test_it_stays_on_the_path():
    assert diverse_level(Gaussians(1.0, noise_range=NoiseRange(0.02, 1.2))) == 1.2
    assert diverse_level(Gaussians(0.001, noise_range=NoiseRange(0.02, 1.2))) == pytest.approx(0.02, rel=0.2)


def test_other_conditions_than_classes_are_refused():
    takes = {"prompt": Entry((3,), torch.float32)}
    with pytest.raises(ValueError, match="can draw classes only: this teacher takes prompt"):
        diverse_level(Gaussians(1.0, takes=takes))


def test_a_teacher_that_makes_one_sample_is_refused():
    with pytest.raises(ValueError, match="samples that differ"):
        diverse_level(Gaussians(0.0))
