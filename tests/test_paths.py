"""Truths about forward processes: what they preserve, and that time inverts the noise level."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.paths import Path, RectifiedFlow, VarianceExploding, VariancePreserving, VPCosine, VPLinear


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def family():
    return [cls() for cls in concrete_subclasses(Path)] + [VPLinear(0.5, 4.0), VPCosine(0.0), VPCosine(0.2)]


def name(path):
    return "-".join([type(path).__name__, *map(str, path.spec()["init_args"].values())])


every_path = pytest.mark.parametrize("path", family(), ids=name)
variance_preserving = pytest.mark.parametrize(
    "path", [path for path in family() if isinstance(path, VariancePreserving)], ids=name
)


def times(dtype=torch.float64):
    return torch.linspace(0.001, 0.98, 500, dtype=dtype)


@every_path
def test_time_inverts_the_noise_ratio(path):
    assert_close(path.time(path.noise_ratio(times())), times(), rtol=1e-9, atol=0)
    sigma = torch.logspace(-3, 0.5, 50, dtype=torch.float64)
    assert_close(path.noise_ratio(path.time(sigma)), sigma, rtol=1e-9, atol=0)


@every_path
def test_single_precision_finds_the_time_as_well_as_it_can(path):
    sigma = torch.logspace(-3, 0.5, 50)
    assert_close(path.time(sigma).double(), path.time(sigma.double()), rtol=3e-6, atol=0)
    t = path.time(sigma.double())
    assert_close(path.sigma(t.float()).double(), path.sigma(t), rtol=3e-6, atol=0)


@every_path
def test_noise_ratio_grows_with_time_from_zero(path):
    ratio = path.noise_ratio(torch.cat([torch.zeros(1, dtype=torch.float64), times()]))
    assert ratio[0] == 0
    assert (ratio.diff() > 0).all()


@every_path
def test_a_clean_sample_is_at_time_zero_with_full_signal(path):
    zero = torch.zeros(1, dtype=torch.float64)
    assert_close(path.alpha(zero), torch.ones_like(zero))
    assert_close(path.time(zero), zero)


@variance_preserving
def test_variance_preserving_paths_keep_unit_variance(path):
    assert_close(path.alpha(times()).square() + path.sigma(times()).square(), torch.ones_like(times()))


@pytest.mark.parametrize("path", [VPLinear(), VPLinear(0.5, 4.0)], ids=name)
def test_linear_signal_is_the_exponential_of_minus_half_the_integral_of_beta(path):
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    beta = path.beta_min + t * (path.beta_max - path.beta_min)
    integral = torch.cumulative_trapezoid(beta, t)  # exact: beta is linear
    assert_close(path.alpha(t)[1:], (-integral / 2).exp(), rtol=1e-10, atol=0)


def test_cosine_schedule_ends_in_pure_noise_and_without_offset_is_a_quarter_turn():
    end = torch.ones(1, dtype=torch.float64)
    assert_close(VPCosine().alpha(end), torch.zeros_like(end))
    t = times()
    assert_close(VPCosine(0.0).alpha(t), (math.pi / 2 * t).cos())
    assert_close(VPCosine(0.0).noise_ratio(t), (math.pi / 2 * t).tan())


def test_rectified_flow_is_the_straight_line_between_sample_and_noise():
    assert_close(RectifiedFlow().alpha(times()) + RectifiedFlow().sigma(times()), torch.ones_like(times()))


def test_time_is_the_noise_level_where_variance_explodes():
    assert_close(VarianceExploding().time(times()), times(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: VPLinear(0.0, 20.0), "beta_min"),
        (lambda: VPLinear(2.0, 1.0), "beta_min"),
        (lambda: VPCosine(1.0), "offset"),
        (lambda: VPCosine(-0.1), "offset"),
    ],
)
def test_impossible_schedules_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
