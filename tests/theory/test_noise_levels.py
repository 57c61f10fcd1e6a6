"""Noise levels follow the law they state, and sampling grids are Karras'."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.theory.noise_levels import (
    KarrasUniform,
    LogNormal,
    LogUniform,
    NoiseLevels,
    Shifted,
    Truncated,
    UniformTime,
    karras_grid,
)
from fdistill.theory.paths import RectifiedFlow, VarianceExploding, VPCosine, VPLinear

ARGUMENTS = {
    UniformTime: {"path": VPLinear()},
    Shifted: {"noise_levels": LogNormal(-0.8, 1.6), "shift": 3.0},
    Truncated: {"noise_levels": LogNormal(-0.8, 1.6), "sigma_min": 0.03, "sigma_max": 14.6},
}


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def family():
    found = [cls(**ARGUMENTS.get(cls, {})) for cls in concrete_subclasses(NoiseLevels)]
    found += [UniformTime(VPCosine()), UniformTime(RectifiedFlow()), UniformTime(VPLinear(), t_min=0.0, t_max=1.0)]
    return [*found, LogNormal(0.4, 2.0), LogUniform(0.1, 3.0), KarrasUniform(0.01, 10.0, rho=3.0, low=0.0, high=0.8)]


every_law = pytest.mark.parametrize("law", family(), ids=lambda law: type(law).__name__)


@every_law
def test_cdf_and_quantile_are_inverse(law):
    u = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)
    assert_close(law.cdf(law.quantile(u)), u, rtol=1e-10, atol=0)
    sigma = law.quantile(u)
    assert_close(law.quantile(law.cdf(sigma)), sigma, rtol=1e-9, atol=0)


@every_law
def test_quantile_is_positive_and_grows(law):
    sigma = law.quantile(torch.linspace(1e-6, 1 - 1e-6, 1000, dtype=torch.float64))
    assert (sigma > 0).all()
    assert (sigma.diff() > 0).all()


@every_law
def test_cdf_of_any_positive_level_is_a_share(law):
    share = law.cdf(torch.logspace(-8, 8, 100, dtype=torch.float64))
    assert ((share >= 0) & (share <= 1)).all()
    assert (share.diff() >= 0).all()
    assert share[0] < 1e-6
    assert share[-1] > 1 - 1e-6


@pytest.mark.parametrize("ends", [(0.0, 2.0), (0.05, math.inf), (0.05, 2.0)])
@pytest.mark.parametrize(
    "law", [LogNormal(-0.8, 1.6), LogUniform(0.01, 5.0), KarrasUniform(0.01, 5.0), UniformTime(RectifiedFlow())]
)
def test_a_truncated_law_is_the_conditional_one(law, ends):
    cut, (low, high) = Truncated(law, *ends), ends
    sigma = torch.logspace(-1.2, 0.2, 50, dtype=torch.float64)
    below = float(law.cdf(torch.tensor(low, dtype=torch.float64))) if low else 0.0
    up_to = float(law.cdf(torch.tensor(high, dtype=torch.float64))) if high < math.inf else 1.0
    assert_close(cut.cdf(sigma), (law.cdf(sigma) - below) / (up_to - below), rtol=1e-12, atol=1e-15)
    drawn = law.sample(200_000, torch.Generator().manual_seed(0)).double()
    kept = drawn[(drawn >= low) & (drawn <= high)].log()
    ours = cut.sample(200_000, torch.Generator().manual_seed(1)).double()
    assert ours.min() >= low * (1 - 1e-6)
    assert ours.max() <= high
    assert abs(ours.log().mean() - kept.mean()) < 5 * kept.std() * math.sqrt(2 / len(kept))


@every_law
def test_bins_of_equal_probability_hold_equally_many_samples(law):
    n, bins = 100_000, 25
    sigma = law.sample(n, torch.Generator().manual_seed(0))
    edges = law.quantile(torch.arange(1, bins, dtype=torch.float64) / bins)
    counts = torch.bincount(torch.bucketize(sigma.double(), edges), minlength=bins)
    assert (counts - n / bins).abs().max() < 5 * math.sqrt(n / bins * (1 - 1 / bins))  # five standard deviations


@every_law
def test_samples_are_float32_finite_positive_and_a_function_of_the_generator(law):
    first, again, other = (law.sample(1000, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.shape == (1000,)
    assert first.dtype == torch.float32
    assert (first > 0).all()
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_logarithm_of_lognormal_levels_has_the_stated_mean_and_deviation():
    log_sigma = LogNormal(-1.2, 1.2).sample(100_000, torch.Generator().manual_seed(0)).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=5 * 1.2 / math.sqrt(100_000))
    assert log_sigma.std().item() == pytest.approx(1.2, abs=5 * 1.2 / math.sqrt(200_000))


def test_logit_normal_times_of_rectified_flow_are_lognormal_levels():
    t, flow = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), RectifiedFlow()
    # the density of arXiv 2403.03206: 1 / (std sqrt(2 pi) t (1 - t)) exp(-(logit t - mean)^2 / (2 std^2))
    mean, std = 0.3, 0.8
    density = (-((t.logit() - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    points = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LogNormal(mean, std).cdf(flow.noise_ratio(points)).sum(), points)
    assert_close(slope, density)


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), RectifiedFlow(), VarianceExploding()], ids=type)
def test_uniform_times_are_uniform_on_their_path(path):
    law = UniformTime(path, t_min=0.2, t_max=0.7)
    t = torch.tensor([0.0, 0.2, 0.3, 0.45, 0.7, 0.9], dtype=torch.float64)
    assert_close(law.cdf(path.noise_ratio(t)), torch.tensor([0.0, 0.0, 0.2, 0.5, 1.0, 1.0], dtype=torch.float64))
    drawn = path.time(law.sample(20_000, torch.Generator().manual_seed(0)))
    assert drawn.min() >= 0.2 - 1e-6
    assert drawn.max() <= 0.7 + 1e-6
    assert drawn.mean().item() == pytest.approx(0.45, abs=5 * 0.5 / math.sqrt(12 * 20_000))


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), RectifiedFlow(), VarianceExploding()], ids=type)
def test_uniform_times_of_every_path_end_at_levels_that_single_precision_can_hold(path):
    ends = UniformTime(path).quantile(torch.tensor([0.0, 1.0]))
    assert 0 < ends[0] < 0.02
    assert ends[1] < 1000


def test_uniform_times_of_rectified_flow_have_the_density_of_their_odds():
    law = UniformTime(RectifiedFlow())
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    (density,) = torch.autograd.grad(law.cdf(sigma).sum(), sigma)
    assert_close(density * 0.998, 1 / (1 + sigma.detach()) ** 2)


def test_karras_uniform_of_infinite_rho_is_log_uniform():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    whole = KarrasUniform(0.01, 50.0, rho=1e6, low=0.0, high=1.0)
    assert_close(whole.quantile(u), LogUniform(0.01, 50.0).quantile(u), rtol=1e-4, atol=0)


def test_cut_karras_levels_stay_inside_the_levels_of_the_grid():
    sigma = KarrasUniform(0.002, 80.0, low=0.02, high=0.98).sample(10_000, torch.Generator().manual_seed(0))
    grid = karras_grid(101, 0.002, 80.0).flip(0)[1:]  # ascending: entry i is the share i / 100
    assert grid[2] <= sigma.min() * (1 + 1e-6)
    assert sigma.max() <= grid[98] * (1 + 1e-6)


def test_quantiles_of_the_whole_karras_law_are_the_sampling_grid():
    u = torch.linspace(0, 1, 18, dtype=torch.float64)
    law = KarrasUniform(0.002, 80.0, low=0.0, high=1.0)
    assert_close(law.quantile(u).flip(0), karras_grid(18, 0.002, 80.0)[:-1])


@pytest.mark.parametrize("num_steps", [2, 18, 80])
def test_grid_falls_from_sigma_max_through_sigma_min_to_zero(num_steps):
    grid = karras_grid(num_steps, 0.002, 80.0)
    assert grid.dtype == torch.float64
    assert len(grid) == num_steps + 1
    assert (grid.diff() < 0).all()
    assert_close(grid[[0, -2, -1]], torch.tensor([80.0, 0.002, 0.0], dtype=torch.float64), rtol=1e-12, atol=0)


def test_grid_of_one_step_goes_from_sigma_max_to_zero():
    assert_close(karras_grid(1, 0.002, 80.0), torch.tensor([80.0, 0.0], dtype=torch.float64))


def test_rho_one_is_the_even_grid_and_rho_infinity_the_geometric_one():
    even, geometric = (karras_grid(9, 0.1, 10.0, rho=rho)[:-1] for rho in (1.0, 1e6))
    assert_close(even.diff(), even.diff()[:1].expand(8))
    steps = geometric.log().diff()
    assert_close(steps, steps[:1].expand(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: karras_grid(0), "step"),
        (lambda: karras_grid(5, 1.0, 0.5), "sigma_max"),
        (lambda: karras_grid(5, 0.0, 0.5), "0 < sigma_min"),
        (lambda: LogNormal(0.0, 0.0), "std"),
        (lambda: LogUniform(-1.0, 1.0), "0 < sigma_min"),
        (lambda: KarrasUniform(rho=0.0), "rho"),
        (lambda: KarrasUniform(low=0.5, high=0.5), "high"),
        (lambda: KarrasUniform(2.0, 1.0), "sigma_max"),
        (lambda: UniformTime(VPLinear(), t_min=-0.1), "t_max"),
        (lambda: UniformTime(VPLinear(), t_max=1.1), "t_max"),
        (lambda: UniformTime(VPLinear(), 0.5, 0.5), "t_max"),
        (lambda: UniformTime(RectifiedFlow(), t_max=1.0), "RectifiedFlow"),
        (lambda: UniformTime(VPCosine(), t_max=1.0), "VPCosine"),
    ],
)
def test_impossible_levels_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_shifted_levels_of_a_flow_are_its_shifted_times():
    flow, u = RectifiedFlow(), torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    times, shifted = (flow.time(law.quantile(u)) for law in (UniformTime(flow), Shifted(UniformTime(flow), 3.0)))
    assert_close(shifted, 3 * times / (1 + 2 * times))
    assert_close(Shifted(LogNormal(0.2, 1.6), 3.0).quantile(u), LogNormal(0.2 + math.log(3), 1.6).quantile(u))
