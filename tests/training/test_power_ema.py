"""Averages are integrals against their profile, and what is reconstructed is what tracking would have given."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fdistill.training.averaging.power_ema import (
    HOPELESS,
    LONGEST,
    POOR,
    PowerEMA,
    Profile,
    _columns,
    _inner_products,
    combine,
    gamma_of,
    kept_share,
    lengths_within,
)

LENGTHS = (0.02, 0.05, 0.1, 0.2, LONGEST)


def density(profile, time):
    """The profile (gamma + 1) tau^gamma / t^(gamma + 1) at times tau; 0 outside [0, t]."""
    gamma, share = gamma_of(profile.length), time.double() / profile.updates
    inside = (share >= 0) & (share <= 1)
    return torch.where(inside, (gamma + 1) * share.clamp(0, 1) ** gamma / profile.updates, 0.0)


def length_of(gamma):
    """Standard deviation of tau / t under that density."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def inner_product(first, second):
    return float(_inner_products(_columns([first]), _columns([second])))


class Weights(nn.Module):
    """A network that is one vector of weights."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values.clone())


def midpoints(end, pieces=200_000):
    return (torch.arange(pieces, dtype=torch.float64) + 0.5) * end / pieces


def tracked(trajectory, lengths):
    """Averages of float64 rows by the recursion, after each row; [updates, length, ...]."""
    averages, history = [torch.zeros_like(trajectory[0]) for _ in lengths], []
    for t, row in enumerate(trajectory, start=1):
        shares = [kept_share(t, gamma_of(length)) for length in lengths]
        averages = [share * average + (1 - share) * row for share, average in zip(shares, averages, strict=True)]
        history.append(torch.stack(averages))
    return torch.stack(history)


def random_walk(updates, width=50, seed=0):
    steps = torch.randn(updates, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 10 + steps.cumsum(0) / updates**0.5


def evenly(updates, number, lengths=(0.05, 0.1)):
    """Snapshots at equal distances, the last one at the end."""
    return [Profile(length, updates * (i + 1) // number) for i in range(number) for length in lengths]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_profile_integrates_to_one_and_its_deviation_over_the_run_is_its_length(length):
    end = 1000
    time = midpoints(end)
    mass = density(Profile(length, end), time) * end / len(time)
    mean = (mass * time).sum()
    assert_close(mass.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-6, atol=0)
    assert_close((mass * (time - mean) ** 2).sum().sqrt() / end, torch.tensor(length).double(), rtol=1e-6, atol=0)


def test_a_profile_is_nothing_outside_the_run():
    assert density(Profile(0.1, 100), torch.tensor([-1.0, 100.5, 1e9])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_have_the_published_exponents(length, gamma):
    assert gamma_of(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [1e-4, 1e-3, 0.01, *LENGTHS[:-1]])
def test_exponent_and_length_are_inverse(length):
    assert length_of(gamma_of(length)) == pytest.approx(length, rel=1e-12)


def test_the_longest_average_is_the_even_one():
    assert gamma_of(LONGEST) == pytest.approx(0, abs=1e-12)
    assert length_of(0.0) == pytest.approx(LONGEST, rel=1e-15)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST + 1e-6, math.nan, math.inf])
def test_a_length_that_no_profile_has_is_refused(length):
    with pytest.raises(ValueError, match=r"expected one in \(0, 0.2887\]"):
        gamma_of(length)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_recursion_weighs_each_update_with_the_integral_of_the_profile(length):
    updates, fine = 40, 5000
    weights = tracked(torch.eye(updates, dtype=torch.float64), [length])[-1, 0]
    parts = density(Profile(length, updates), midpoints(updates, updates * fine))
    assert_close(weights, parts.reshape(updates, fine).mean(1), rtol=1e-6, atol=1e-9)


def test_in_the_limit_of_many_updates_the_average_of_a_function_is_its_integral_at_first_order():
    errors = []
    for updates in (500, 1000, 2000):
        time = torch.arange(1, updates + 1, dtype=torch.float64) / updates
        gamma, found = gamma_of(0.1), tracked((time**2)[:, None], [0.1])[-1, 0]
        errors.append(abs(float(found) - (gamma + 1) / (gamma + 3)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.05)


def test_the_even_average_is_the_mean():
    walk = random_walk(100)
    assert_close(tracked(walk, [LONGEST])[-1, 0], walk.mean(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [((0.05, 700), (0.05, 700)), ((0.05, 700), (0.1, 700)), ((0.03, 400), (0.2, 900)), ((LONGEST, 900), (0.1, 500))],
)
def test_inner_products_are_those_of_quadrature(first, second):
    first, second = Profile(*first), Profile(*second)
    time = midpoints(900, 1_800_000)
    expected = float((density(first, time) * density(second, time)).mean() * 900)
    assert inner_product(first, second) == pytest.approx(expected, rel=1e-6)
    assert inner_product(second, first) == pytest.approx(inner_product(first, second), rel=1e-14)


def test_inner_products_neither_overflow_nor_vanish_for_a_million_updates():
    sharp = Profile(0.001, 1_000_000)
    assert inner_product(sharp, sharp) == pytest.approx((gamma_of(0.001) + 1) ** 2 / (2 * gamma_of(0.001) + 1) / 1e6)


def test_the_tracked_average_is_the_recursion_and_forgets_where_it_began():
    walk = random_walk(30).float()
    ema = PowerEMA(Weights(torch.full((50,), 1e6)), (0.05, 0.1))
    for row in walk:
        ema.update(Weights(row))
    assert ema.updates == 30
    expected = tracked(walk.double(), ema.lengths)[-1]
    for length, wanted in zip(ema.lengths, expected, strict=True):
        assert_close(ema.named()[length]["values"], wanted.float(), rtol=1e-6, atol=0)


def test_the_average_of_a_bfloat16_network_is_float32_and_moves():
    network = Weights(torch.zeros(3)).bfloat16()
    ema = PowerEMA(network, (0.1,))
    ema.restore([[torch.zeros(3)]], updates=100_000)
    nn.init.ones_(network.values)
    ema.update(network)
    assert ema.averages[0][0].dtype == torch.float32
    assert_close(ema.averages[0][0], torch.full((3,), (gamma_of(0.1) + 1) / 1e5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("lengths", [(), (0.1, 0.1), (0.05, 0.5)])
def test_lengths_that_cannot_be_tracked_are_refused(lengths):
    with pytest.raises(ValueError, match="got"):
        PowerEMA(Weights(torch.zeros(2)), lengths)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2])
def test_reconstruction_nears_the_tracked_average_with_the_number_of_snapshots(length):
    updates = 960
    walk, errors = random_walk(updates), []
    history = tracked(walk, (0.05, 0.1, length))
    for number in (8, 16, 32):
        stored = evenly(updates, number)
        values = torch.stack([history[p.updates - 1, (0.05, 0.1).index(p.length)] for p in stored])
        found = combine(stored, Profile(length, updates)).weights @ values
        errors.append(float((found - history[-1, 2]).norm() / (walk[-1] - walk.mean(0)).norm()))
    assert errors[0] > 2.5 * errors[1] > 2.5**2 * errors[2]
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("number", [1, 8, 64])
def test_a_stored_average_is_reconstructed_as_itself(number):
    stored = evenly(6400, number)
    for i in (-1, -2, 0):
        wanted = torch.zeros(len(stored), dtype=torch.float64)
        wanted[i] = 1
        found = combine(stored, stored[i])
        assert_close(found.weights, wanted, rtol=0, atol=1e-8)
        assert (found.residual, found.gain) == (pytest.approx(0, abs=1e-6), pytest.approx(1))


def test_the_residual_and_the_gain_are_those_of_the_combined_profile():
    stored, wanted = evenly(500, 6), Profile(0.03, 500)
    found = combine(stored, wanted)
    time = midpoints(500)
    made = sum(weight * density(p, time) for weight, p in zip(found.weights.tolist(), stored, strict=True))
    missed = (made - density(wanted, time)).norm() / density(wanted, time).norm()
    assert found.residual == pytest.approx(float(missed), rel=1e-4)
    assert found.gain == pytest.approx(float(found.weights.norm()))


def test_the_residual_is_the_error_over_the_noise_that_an_average_of_white_noise_keeps():
    stored, wanted, width = evenly(1200, 4), Profile(0.15, 1200), 3000
    noise = torch.randn(1200, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    history = tracked(noise, (0.05, 0.1, 0.15))
    found = combine(stored, wanted)
    values = torch.stack([history[p.updates - 1, (0.05, 0.1).index(p.length)] for p in stored])
    error = (found.weights @ values - history[-1, 2]).norm() / history[-1, 2].norm()
    assert float(error) == pytest.approx(found.residual, rel=0.06)  # the discrete profile of few updates is not smooth


@pytest.mark.parametrize("number", [2, 5])
def test_weights_that_do_not_move_come_out_as_they_are(number):
    found = combine(evenly(1000, number), Profile(0.12, 1000))
    assert float(found.weights.sum()) == pytest.approx(1, rel=1e-10)


def test_no_other_weights_of_sum_one_are_nearer():
    stored, wanted = evenly(1000, 4), Profile(0.07, 1000)
    found, time = combine(stored, wanted), midpoints(1000, 20_000)
    densities = torch.stack([density(p, time) for p in stored])

    def missed(weights):
        return float((weights @ densities - density(wanted, time)).norm())

    for seed in range(20):
        step = torch.randn(len(stored), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 0.01 * (step - step.mean())
        assert missed(found.weights + step) > missed(found.weights)


def test_more_snapshots_reach_further():
    few, many = (lengths_within(evenly(6400, number), 6400) for number in (8, 64))
    assert many[0] < few[0] < 0.05 < 0.1 < few[1] < many[1]


def test_the_range_is_where_reconstruction_is_within_the_residual():
    stored = evenly(1000, 8)
    low, high = lengths_within(stored, 1000, POOR)
    for length in (low, high):
        assert combine(stored, Profile(length, 1000)).residual <= POOR
    for length in (0.97 * low, 1.03 * high):
        assert combine(stored, Profile(length, 1000)).residual > POOR


def test_a_length_outside_the_range_is_refused_with_the_range():
    stored = evenly(1000, 8)
    low, high = lengths_within(stored, 1000, HOPELESS)
    with pytest.raises(ValueError, match=rf"expected a length in \[{low:.3g}, {high:.3g}\]; store more, or track it"):
        combine(stored, Profile(0.005, 1000))


def test_an_average_after_the_last_snapshot_is_refused():
    with pytest.raises(ValueError, match="stored"):
        combine(evenly(1000, 8), Profile(0.1, 2000))
    with pytest.raises(ValueError, match="got none"):
        combine([], Profile(0.1, 10))
