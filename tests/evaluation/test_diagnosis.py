"""The yardsticks of a diagnosis are exact: the best linear denoiser, its loss, and what others exceed it by."""

import math

import pytest
import torch
from tiny_runs import exact, mlp
from torch.testing import assert_close

from fdistill.core.random import generator_for
from fdistill.evaluation.see_saw import LinearDenoiser, ratio_by_bin, see_saw
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.theory.noise_levels import LogNormal, LogUniform
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

MEAN, STD = [0.3, -0.7, 0.2], 0.5
GAUSSIAN = exact([MEAN], [STD])
LINEAR = LinearDenoiser(torch.tensor([MEAN], dtype=torch.float64), torch.eye(3), torch.tensor([STD**2] * 3))
LEVELS = LogUniform(0.05, 20.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator_for(seed))


def gaussian_samples(n, seed=0):
    return torch.tensor(MEAN, dtype=torch.float64) + STD * normal(n, 3, seed=seed)


def correlated(n, d=5):
    return normal(n, d) @ normal(d, d, seed=1) + normal(d, seed=2)


class Shrunk(GaussianMixture):
    """The exact denoiser with a share of its deviation from the mean left out."""

    share = 0.8

    def decode(self, encoding):
        return self.means[0] + self.share * (super().decode(encoding) - self.means[0])


class OneClass(GaussianMixture):
    """Right for class 1, and far off for any other."""

    def __init__(self):
        super().__init__([MEAN], [STD])
        self.num_classes = 2

    def encode(self, x, noise, condition):
        encoding = super().encode(x, noise, condition)
        return encoding._replace(state=(*encoding.state, condition["labels"]))

    def decode(self, encoding):
        x, sigma, labels = encoding.state
        right = super().decode(encoding._replace(state=(x, sigma)))
        return torch.where((labels == 1)[:, None], right, right + 1)


def fitted(x_0, *classes):
    return LinearDenoiser.fit(x_0, generator_for(5), *classes)


def by_class(x_0):
    """Fitted to three classes in turn."""
    return fitted(x_0, torch.arange(len(x_0)) % 3, 3)


def curve(denoiser, x_0=None, levels=LEVELS, labels=None, linear=LINEAR, seed=3, **arguments):
    x_0 = gaussian_samples(2000) if x_0 is None else x_0
    return see_saw(denoiser, linear, x_0, labels, levels, generator_for(seed), **arguments)


def test_the_linear_denoiser_of_a_gaussian_is_its_exact_denoiser():
    x, sigma = 3 * normal(64, 3), LEVELS.sample(64, generator_for(0)).double()
    assert_close(LINEAR(x, sigma), GAUSSIAN(x, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [400, 4], ids=["more samples than entries", "fewer"])
def test_the_linear_denoiser_is_wieners_filter(n):
    x_0, sigma = correlated(n), 0.7
    linear, covariance = fitted(x_0), torch.cov(x_0.T, correction=0)
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(5, dtype=torch.float64))
    x = x_0 + normal(n, 5, seed=6)
    expected = x_0.mean(0) + (x - x_0.mean(0)) @ gain.T
    level = torch.full((n,), sigma, dtype=torch.float64)
    assert_close(linear(x, level), expected, rtol=1e-9, atol=1e-9)
    assert_close(linear.expected_loss(level)[0], (gain * sigma**2).trace(), rtol=1e-9, atol=0)


def test_told_the_class_it_is_the_filter_of_the_class():
    centres = torch.tensor([[9.0, 0, 0, 0, 0], [0, -5.0, 0, 0, 0], [0, 0, 1.0, 2.0, 0]], dtype=torch.float64)
    one, labels = correlated(100), torch.arange(300) % 3
    x_0 = torch.empty(300, 5, dtype=torch.float64)
    for c in range(3):
        x_0[labels == c] = one + centres[c]  # the same covariance in every class
    told, alone, level = by_class(x_0), fitted(one), torch.full((100,), 0.8)
    for c in range(3):
        found = told(x_0[labels == c], level, labels[labels == c])
        assert_close(found, alone(one, level) + centres[c], rtol=1e-9, atol=1e-9)
    assert_close(fitted(one, torch.zeros(100, dtype=torch.int64), 2).mean[1], one.mean(0))  # a class without samples


class Recites(torch.nn.Module):
    """Knows the centre of each class, adds 1 to every entry, and looks at nothing else."""

    num_classes = 2

    def __init__(self, centres):
        super().__init__()
        self.centres = centres

    def forward(self, x, sigma, labels):
        return self.centres[labels] + 1


def test_what_the_class_alone_tells_is_no_merit_of_a_denoiser_that_is_told_it():
    """At high noise its error of 1 exceeds by 1 / s^2, which one mean for all classes would hide."""
    centres = torch.tensor([MEAN, [50.0, 0.0, 0.0]], dtype=torch.float64)
    labels = torch.arange(2000) % 2
    x_0 = centres[labels] + STD * normal(2000, 3)
    high = {"levels": LogUniform(9999, 10001), "num_bins": 1, "labels": labels}
    hidden, seen = (curve(Recites(centres), x_0, linear=fitted(x_0, *c), **high) for c in ((), (labels, 2)))
    assert float(hidden.excess) < -0.99
    assert abs(float(seen.excess) - 1 / STD**2) < 4 * float(seen.standard_error) < 0.2 / STD**2


def test_beyond_the_largest_side_the_covariance_is_of_some_samples_and_the_mean_of_all(monkeypatch):
    monkeypatch.setattr("fdistill.evaluation.see_saw.MOST_ENTRIES", 3)
    x_0 = correlated(20)
    linear = fitted(x_0)
    assert linear._axes.shape == (5, 3)
    assert_close(linear._axes.T @ linear._axes, torch.eye(3, dtype=torch.float64))
    assert_close(linear.mean[0], x_0.mean(0))


def test_the_expected_loss_is_exact_on_the_training_covariance():
    """With the noise averaged analytically: |shrunk deviation|^2 of each sample plus what the noise adds."""
    x_0, sigma = correlated(300).exp(), 2.0  # far from Gaussian
    linear, level = fitted(x_0), torch.full((300,), sigma, dtype=torch.float64)
    bias = (linear(x_0, level) - x_0).square().sum(1).mean()
    gain = linear(torch.eye(5, dtype=torch.float64) + linear.mean, level[:5]) - linear.mean
    assert_close(bias + sigma**2 * gain.square().sum(), linear.expected_loss(level)[0], rtol=1e-9, atol=0)


def test_no_linear_denoiser_does_better():
    x_0, level = correlated(300), torch.full((300,), 0.5, dtype=torch.float64)
    linear = fitted(x_0)
    noise = 0.5 * normal(300, 5, seed=4)
    noise -= noise.mean(0)
    design = torch.cat([x_0 + noise, torch.ones(300, 1, dtype=torch.float64)], 1)
    solved = design @ torch.linalg.lstsq(design, x_0).solution  # the best on this one draw of the noise
    loss = (linear(x_0 + noise, level) - x_0).square().sum()
    assert (solved - x_0).square().sum() <= loss <= 1.02 * (solved - x_0).square().sum()


def test_an_exact_denoiser_of_gaussian_data_has_no_excess():
    found = curve(GAUSSIAN)
    assert_close(found.excess, torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(found.standard_error, torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)


def test_beside_a_linear_denoiser_fitted_elsewhere_the_excess_is_zero_within_its_error():
    found = curve(GAUSSIAN, gaussian_samples(4000), linear=fitted(gaussian_samples(4000, seed=9)))
    assert (found.excess.abs() < 4 * found.standard_error + 3 / 4000).all()  # it fits d + d (d + 1) / 2 numbers from n


def test_a_denoiser_shrunk_by_c_exceeds_by_its_lost_signal_over_the_noise():
    """(1 - c)^2 s^2 / sigma^2 for N(mu, s^2); over ln sigma in [a, b] sigma^-2 averages (a^-2 - b^-2) / 2 ln(b/a)."""
    shrunk = Denoiser(Shrunk([MEAN], [STD]), X0Prediction(VarianceExploding()))
    edges = LEVELS.quantile(torch.linspace(0, 1, 6, dtype=torch.float64))
    low, high = edges[:-1], edges[1:]
    expected = 0.2**2 * STD**2 * (low**-2 - high**-2) / (2 * (high / low).log())
    found = curve(shrunk, gaussian_samples(20_000), num_bins=5)
    assert (found.excess > 0).all()
    assert ((found.excess - expected).abs() < 4 * found.standard_error).all()
    assert (found.standard_error[:3] < 0.1 * expected[:3]).all()


def test_the_standard_error_is_the_spread_over_repetitions():
    shrunk = Denoiser(Shrunk([MEAN], [STD]), X0Prediction(VarianceExploding()))
    found = [curve(shrunk, gaussian_samples(200, seed=seed), num_bins=3, seed=seed) for seed in range(100)]
    spread = torch.stack([one.excess for one in found]).std(0)
    claimed = torch.stack([one.standard_error for one in found]).mean(0)
    assert_close(claimed, spread, rtol=0.25, atol=0)


def test_on_a_mixture_the_exact_denoiser_gains_where_the_noise_lets_modes_be_told_apart_and_not_at_high_noise():
    network = GaussianMixture([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [0.1, 0.1])
    x_0 = network.sample(4000, generator_for(0))[0].double()
    found = curve(Denoiser(network, X0Prediction(VarianceExploding())), x_0, linear=fitted(x_0))
    assert (found.excess < 4 * found.standard_error).all()
    assert found.excess.min() < -0.4
    assert abs(float(found.excess[-1])) < 0.05


def test_the_error_of_eps_is_zero_for_the_exact_denoiser_and_known_for_a_shrunk_one():
    """At one noise level D - D* = -(1 - c) A (x - mu), eps* = (1 - A) (x - mu) / sigma, A = s^2 / (s^2 + sigma^2)."""
    narrow = LogUniform(0.999, 1.001)
    assert curve(GAUSSIAN).eps_error is None
    assert float(curve(GAUSSIAN, exact=GAUSSIAN).eps_error.max()) == 0
    shrunk = Denoiser(Shrunk([MEAN], [STD]), X0Prediction(VarianceExploding()))
    (error,) = curve(shrunk, levels=narrow, num_bins=1, exact=GAUSSIAN).eps_error
    assert float(error) == pytest.approx(0.2 * STD**2, rel=3e-3)


def test_bins_are_equally_probable_and_named_by_their_middle():
    middles = curve(GAUSSIAN, levels=LogNormal(-1.2, 1.2), num_bins=4).sigma
    assert_close(LogNormal(-1.2, 1.2).cdf(middles), torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64))


def test_a_conditional_denoiser_is_asked_with_labels_and_an_unconditional_one_without():
    conditional, ones = Denoiser(OneClass(), X0Prediction(VarianceExploding())), torch.ones(2000, dtype=torch.int64)
    assert float(curve(conditional, labels=ones).excess.abs().max()) < 1e-12
    assert float(curve(conditional, labels=0 * ones).excess.min()) > 0.1
    assert_close(curve(mlp().double(), gaussian_samples(9)[:, :2], labels=ones, linear=plane()).excess,
                 curve(mlp().double(), gaussian_samples(9)[:, :2], linear=plane()).excess)  # fmt: skip


def plane():
    return LinearDenoiser(torch.zeros(1, 2), torch.eye(2), torch.ones(2))


def test_the_same_generator_gives_the_same_curve_and_nothing_else_is_random():
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(curve(GAUSSIAN)[:3], curve(GAUSSIAN)[:3], strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: fitted(torch.ones(9, 2)), "trace"),
        (lambda: fitted(torch.ones(2, 9)), "trace"),
        (lambda: fitted(torch.full((9, 2), math.nan)), "trace"),
        (
            lambda: by_class(normal(9, 2))(normal(2, 2), torch.ones(2)),
            "label",
        ),
        (lambda: curve(GAUSSIAN, gaussian_samples(1)), "got 1 and 10"),
        (lambda: curve(GAUSSIAN, num_bins=0), "got 2000 and 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_ratios_by_bin_are_means_of_their_bin_and_empty_bins_are_nan():
    bins = torch.tensor([0, 0, 0, 2])
    found = ratio_by_bin(bins, torch.tensor([1.0, 2.0, 6.0, -1.0]), torch.tensor([1.0, 1.0, 4.0, 0.5]), 3)
    nan = math.nan
    assert_close(found.log_mean, torch.tensor([3.0, nan, -1.0], dtype=torch.float64), equal_nan=True)
    assert_close(found.weight_mean, torch.tensor([2.0, nan, 0.5], dtype=torch.float64), equal_nan=True)
    assert_close(found.ess, torch.tensor([36 / (3 * 18), nan, 1.0], dtype=torch.float64), equal_nan=True)


def test_equal_weights_have_the_full_effective_share_and_one_weight_alone_a_single_sample_of_it():
    bins, zeros = torch.zeros(8, dtype=torch.int64), torch.zeros(8)
    assert float(ratio_by_bin(bins, zeros, torch.full((8,), 0.3), 1).ess) == pytest.approx(1)
    alone = torch.tensor([1.0] + [1e-12] * 7)
    assert float(ratio_by_bin(bins, zeros, alone, 1).ess) == pytest.approx(1 / 8)
