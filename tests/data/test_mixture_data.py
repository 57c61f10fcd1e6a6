"""Samples of a mixture have the moments, weights and modes of its closed form."""

import math

import pytest
import torch

from fdistill.data import GaussianMixtureData, forty_modes, grid, nearest_mode, ring, sample_mixture

CASES = {
    "ring": {"kind": "ring"},
    "unbalanced": {"kind": "ring", "num_modes": 4, "std": 0.3, "weights": [8, 4, 2, 1]},
    "grid": {"kind": "grid", "side": 3, "spacing": 2.0},
    "forty": {"kind": "forty"},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), scope="module")
def data(request):
    return GaussianMixtureData(num_samples=40_000, num_held_out=2_000, **request.param)


def test_empirical_weights_are_within_five_standard_errors(data):
    w, n = data.parameters().weights, len(data.train_samples.labels)
    empirical = data.train_samples.labels.bincount(minlength=data.num_classes) / n
    assert ((empirical - w).abs() <= 5 * (w * (1 - w) / n).sqrt()).all()


def test_empirical_mean_and_covariance_are_those_of_the_mixture(data):
    means, stds, w = data.parameters()
    x = data.train_samples.copied().x.double()
    mean = w @ means
    cov = (w * stds.square()).sum() * torch.eye(2) + torch.einsum("i,ia,ib->ab", w, means - mean, means - mean)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((x.mean(0) - mean).abs() <= 5 * (cov.diagonal() / len(x)).sqrt()).all()
    assert ((products.mean(0) - cov).abs() <= 5 * products.std(0) / len(x) ** 0.5).all()


def test_each_mode_is_an_isotropic_gaussian_about_its_mean(data):
    means, stds, _ = data.parameters()
    z = (data.train_samples.copied().x.double() - means[data.train_samples.labels]) / stds[
        data.train_samples.labels, None
    ]
    assert z.mean(0).abs().max() < 5 / len(z) ** 0.5
    assert (z.T @ z / len(z) - torch.eye(2)).abs().max() < 5 * (2 / len(z)) ** 0.5


def test_data_std_is_the_root_of_the_mean_variance(data):
    means, stds, w = data.parameters()
    second_moment = (w @ (means.square().mean(1) + stds.square())).item()
    overall_mean = (w @ means).mean().item()
    assert data.data_std() == pytest.approx(math.sqrt(second_moment - overall_mean**2), rel=0.02)


def test_every_mode_of_nonzero_weight_is_in_both_splits(data):
    assert len(data.train_samples.labels.unique()) == len(data.held_out_samples.labels.unique()) == data.num_classes


def test_splits_share_no_sample(data):
    train, held_out = (
        {tuple(p) for p in s.x.tolist()} for s in (data.train_samples.copied(), data.held_out_samples.copied())
    )
    assert not train & held_out


def test_parameters_are_float64_and_weights_sum_to_one(data):
    assert all(p.dtype == torch.float64 for p in data.parameters())
    assert data.parameters().weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_nearest_mode_recovers_the_labels_of_well_separated_modes():
    x, labels = sample_mixture(grid(5, 1.0, 0.05), 5_000, torch.Generator().manual_seed(0))
    assert torch.equal(nearest_mode(x.float(), grid(5, 1.0, 0.05)), labels)


def test_read_modes_is_the_nearest_mode_however_many_points_there_are(data, monkeypatch):
    x = data.held_out_samples.copied().x
    monkeypatch.setattr("fdistill.data.mixtures._CHUNK", 7)
    assert torch.equal(data.read_modes(x), nearest_mode(x, data.parameters()))
    assert data.read_modes(x[:0]).shape == (0,)


def test_every_kind_knows_its_modes_and_comes_back_from_its_spec(data):
    assert data.num_modes == data.num_classes == len(data.parameters().weights)
    again = GaussianMixtureData.from_spec(data.spec())
    assert again.spec() == data.spec()
    assert torch.equal(again.parameters().means, data.parameters().means)


def test_read_modes_refuses_points_that_are_nowhere():
    x = torch.zeros(4, 2)
    x[1, 0], x[3, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="broken"):
        GaussianMixtureData().read_modes(x)


def test_nearest_mode_weighs_the_modes():
    # on the line between two modes at +-1 the posterior is even at x = std^2 / 2 log(w_right / w_left), left of 0
    even, lopsided = ring(2, 1.0, 0.5), ring(2, 1.0, 0.5, [9, 1])  # the first mode is the one on the right
    border = -(0.5**2) / 2 * math.log(9)
    x = torch.tensor([[border - 1e-3, 0.0], [border + 1e-3, 0.0], [-1e-3, 0.0], [1e-3, 0.0]])
    assert nearest_mode(x, even).tolist() == [1, 1, 1, 0]
    assert nearest_mode(x, lopsided).tolist() == [1, 0, 0, 0]


def test_nearest_mode_is_the_bayes_classifier():
    parameters = ring(4, 1.0, 0.6, [8, 4, 2, 1])
    x, labels = sample_mixture(parameters, 40_000, torch.Generator().manual_seed(1))
    density = torch.distributions.MultivariateNormal(parameters.means, 0.6**2 * torch.eye(2, dtype=torch.float64))
    posterior = (density.log_prob(x[:, None]) + parameters.weights.log()).softmax(dim=1)
    accuracy = (nearest_mode(x, parameters) == labels).double().mean()
    assert abs(accuracy - posterior.max(dim=1).values.mean()) < 5 * 0.5 / len(x) ** 0.5


def test_a_mode_of_weight_zero_is_never_drawn_nor_nearest():
    parameters = ring(3, 1.0, 0.1, [1, 0, 1])
    x, labels = sample_mixture(parameters, 1_000, torch.Generator().manual_seed(0))
    assert 1 not in labels
    assert 1 not in nearest_mode(parameters.means, parameters)
    assert torch.isfinite(x).all()


def test_ring_modes_lie_on_the_circle_at_equal_distances():
    means = ring(7, 3.0, 0.1).means
    torch.testing.assert_close(means.norm(dim=1), torch.full((7,), 3.0, dtype=torch.float64))
    side = (means - means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(side, torch.full((7,), 6 * math.sin(math.pi / 7), dtype=torch.float64))


def test_grid_is_centred_and_its_nearest_neighbours_are_one_spacing_apart():
    means = grid(4, 1.5, 0.1).means
    assert means.mean(0).abs().max() < 1e-12
    distance = torch.cdist(means, means).fill_diagonal_(math.inf).min(dim=1).values
    torch.testing.assert_close(distance, torch.full((16,), 1.5, dtype=torch.float64))


def test_forty_modes_are_the_published_benchmark():
    means, stds, weights = forty_modes()
    published = torch.tensor([[-0.2995, 21.4577], [-32.9218, -29.4376], [-15.4062, 10.7263]], dtype=torch.float64)
    torch.testing.assert_close(means[:3], published, rtol=0, atol=5e-5)
    assert means.shape == (40, 2)
    assert means.abs().max() <= 40
    torch.testing.assert_close(stds.exp(), torch.full((40,), 1 + math.e, dtype=torch.float64))  # softplus(1)
    assert weights.unique().tolist() == [1 / 40]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "circle"}, "mixture"),
        ({"kind": "forty", "std": 1.0}, "std"),
        ({"kind": "ring", "side": 3}, "side"),
        ({"kind": "ring", "num_modes": 0}, "num_modes >= 1"),
        ({"kind": "ring", "std": 0.0}, "std > 0"),
        ({"kind": "ring", "radius": float("nan")}, "radius > 0"),
        ({"kind": "grid", "spacing": -1.0}, "spacing > 0"),
        ({"kind": "ring", "num_modes": 3, "weights": [1, 1]}, "expected 3, got 2"),
        ({"kind": "ring", "num_modes": 2, "weights": [1, -1]}, "weights"),
        ({"kind": "ring", "num_modes": 2, "weights": [0, 0]}, "weights"),
        ({"num_samples": 0}, "num_samples >= 1"),
    ],
)
def test_bad_mixtures_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixtureData(**arguments)


def test_the_exact_network_minimises_the_denoising_loss_of_the_data(data):
    """E[x_0 | x] is uncorrelated with the error it makes, and x_0 - E[x_0 | x] has mean 0 wherever one looks."""
    x_0, sigma = data.held_out_samples.copied().x.double(), torch.full((2_000,), 0.7, dtype=torch.float64)
    x = x_0 + 0.7 * torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    best = data.exact_network()(x, sigma)
    for looked_at in (torch.ones_like(x), best, x):
        product = (x_0 - best) * looked_at
        assert (product.mean(0).abs() < 5 * product.std(0) / len(x) ** 0.5).all()


def test_the_exact_network_leaves_modes_of_weight_zero_out():
    with_it = GaussianMixtureData(num_modes=3, weights=[1, 0, 2]).exact_network()
    assert torch.equal(with_it.means, ring(3, 2.0, 0.1).means[[0, 2]])
    torch.testing.assert_close(with_it.log_shares.exp(), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))


def test_points_of_another_space_are_refused():
    with pytest.raises(ValueError, match=r"expected \[B, 2\], got \(5, 3\)"):
        nearest_mode(torch.zeros(5, 3), ring(3, 1.0, 0.1))
