"""The MLP's constant start makes a one-step student one known Gaussian."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.sampling import one_step
from fdistill.theory.preconditioning import EDM

VALUE, SIGMA_DATA, SIGMA_INIT = [0.4, -1.1], 0.8, 2.5


def student(**arguments):
    torch.manual_seed(0)
    return Denoiser(MLP(dim=2, width=16, depth=2, initial_output=VALUE, **arguments).double(), EDM(SIGMA_DATA))


def test_constant_start_gives_the_value_whatever_the_input():
    network = student(num_classes=3).network
    x, noise = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert_close(network(x, noise, torch.arange(5) % 4), torch.tensor(VALUE).double().expand(5, 2))


def test_student_that_starts_constant_is_a_gaussian_around_sigma_data_times_the_value():
    # D(sigma z, sigma) = c_out F + c_skip sigma z: linear in z, so mean and deviation are read off exactly
    z = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = one_step(student(), z, torch.tensor([SIGMA_INIT]))
    share = SIGMA_INIT / math.hypot(SIGMA_INIT, SIGMA_DATA)
    centre = share * SIGMA_DATA * torch.tensor(VALUE).double()
    spread = share * SIGMA_DATA * SIGMA_DATA / math.hypot(SIGMA_INIT, SIGMA_DATA)
    assert_close(samples, centre + spread * z)


def test_student_at_much_noise_starts_as_the_point_sigma_data_times_the_value():
    z = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = one_step(student(), z, torch.tensor([1e7]))
    assert_close(samples, SIGMA_DATA * torch.tensor(VALUE).double().expand(9, 2), rtol=0, atol=1e-6)


def test_constant_start_learns_at_once_and_wakes_the_body_at_the_second_step():
    network = student().network
    x, noise = torch.randn(64, 2, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    for body_moves in (False, True):
        network.zero_grad()
        (network(x, noise) - x).square().mean().backward()
        assert network.output.weight.grad.abs().max() > 0
        assert bool(network.input.weight.grad.any()) == body_moves
        torch.optim.SGD(network.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dim": 0}, "dim >= 1"),
        ({"depth": 1}, "depth >= 2"),
        ({"width": 15}, "even"),
        ({"dim": 3, "initial_output": [1.0]}, "expected 3, got 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        MLP(**arguments)


def test_fourier_features_are_the_same_for_every_network_and_travel_with_its_weights():
    one, two = MLP(dim=2, width=16, depth=2, frequencies=8), MLP(dim=2, width=32, depth=2, frequencies=8)
    assert torch.equal(one.frequencies, two.frequencies)
    assert "frequencies" in one.state_dict()
    assert "frequencies" not in MLP(dim=2, width=16, depth=2).state_dict()
    x, noise = torch.randn(5, 2), torch.zeros(5)
    assert one.decode(one.encode(x, noise, None)).shape == (5, 2)


def test_fourier_features_tell_points_apart_at_the_width_of_their_frequencies():
    network = MLP(dim=1, width=16, depth=2, frequencies=64, frequency_std=20.0)
    near = torch.tensor([[0.0], [0.001], [0.2]])
    waves = network._with_waves(near)[:, 1:]
    assert (waves[0] - waves[1]).norm() < 0.05 * (waves[0] - waves[2]).norm()
    assert waves[0] @ waves[2] < 0.35 * 64  # cosines of far phases average out


@pytest.mark.parametrize("bad", [{"frequencies": -1}, {"frequencies": 4, "frequency_std": 0.0}])
def test_impossible_frequencies_are_refused(bad):
    with pytest.raises(ValueError, match="frequencies"):
        MLP(width=16, depth=2, **bad)


@pytest.mark.parametrize("names", [("digit", "ground"), ("labels", "ground")])
def test_each_set_of_classes_reaches_the_network(names):
    network = MLP(width=8, depth=2, num_classes=dict.fromkeys(names, 3))
    x, noise, ones = torch.randn(4, 2), torch.zeros(4), torch.ones(4, dtype=torch.int64)
    output = network(x, noise, Condition(dict.fromkeys(names, ones)))
    for name in names:
        other = network(x, noise, Condition({**dict.fromkeys(names, ones), name: 2 * ones}))
        assert (other - output).abs().amax(1).min() > 0
