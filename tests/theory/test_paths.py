"""Truths about forward processes: what they preserve, and that time inverts the noise level."""

import inspect
import json
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.theory.paths import (
    FromRate,
    KineticOptimal,
    Path,
    RectifiedFlow,
    ScaledLinear,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
    VPCosine,
    VPLinear,
)

ANGLES = [0.0, 0.2, 0.5, 0.6, 1.1, 1.4]
SHARES = [0.1, 0.3, 0.2, 0.9, 0.7, 0.4]


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def family():
    plain = [cls() for cls in concrete_subclasses(Path) if cls is not KineticOptimal]
    others = [VPLinear(0.5, 4.0), VPCosine(0.0), VPCosine(0.2), ScaledLinear(0.1, 20.0), TrigFlow(0.5)]
    return plain + others + [KineticOptimal(ANGLES, SHARES, 0.7), KineticOptimal([0.3], [0.5])]


def starts_clean(path):
    return float(path.sigma(torch.zeros((), dtype=torch.float64))) == 0


def name(path):
    given = [str(len(value)) if isinstance(value, list) else str(value) for value in path.spec()["init_args"].values()]
    return "-".join([type(path).__name__, *given])


every_path = pytest.mark.parametrize("path", family(), ids=name)
from_clean = pytest.mark.parametrize("path", [path for path in family() if starts_clean(path)], ids=name)
variance_preserving = pytest.mark.parametrize(
    "path", [path for path in family() if isinstance(path, VariancePreserving)], ids=name
)


def times(dtype=torch.float64):
    return torch.linspace(0.001, 0.98, 500, dtype=dtype)


def levels(path):
    """Noise levels that the path has; some begin above .001."""
    begin = torch.tensor(1e-3, dtype=torch.float64)
    return torch.logspace(float(path.noise_ratio(path.time(begin)).log10()), 0.5, 50, dtype=torch.float64)


@every_path
def test_time_inverts_the_noise_ratio(path):
    assert_close(path.time(path.noise_ratio(times())), times(), rtol=1e-9, atol=0)
    assert_close(path.noise_ratio(path.time(levels(path))), levels(path), rtol=1e-9, atol=0)


@every_path
def test_single_precision_finds_the_time_as_well_as_it_can(path):
    sigma = levels(path).float()
    assert_close(path.time(sigma).double(), path.time(sigma.double()), rtol=3e-6, atol=0)
    t = path.time(sigma.double())
    assert_close(path.sigma(t.float()).double(), path.sigma(t), rtol=3e-6, atol=0)


@every_path
def test_noise_ratio_grows_with_time(path):
    ratio = path.noise_ratio(torch.cat([torch.zeros(1, dtype=torch.float64), times()]))
    assert ratio[0] >= 0
    assert (ratio.diff() > 0).all()


@every_path
def test_scales_stay_in_their_ranges_to_the_very_end(path):
    for dtype in (torch.float32, torch.float64):
        t = torch.cat([times(dtype), 1 - torch.logspace(-3, -8, 20, dtype=dtype), torch.ones(1, dtype=dtype)])
        alpha, sigma = path.alpha(t), path.sigma(t)
        assert ((alpha >= 0) & (alpha <= 1)).all()
        assert ((sigma > 0) & sigma.isfinite()).all()


@every_path
def test_a_path_is_rebuilt_from_its_description(path):
    again = Path.from_spec(json.loads(json.dumps(path.spec())))
    assert type(again) is type(path)
    assert torch.equal(again.noise_ratio(times()), path.noise_ratio(times()))


@every_path
def test_a_path_is_elementwise_and_keeps_shape_and_type(path):
    t = times()[:12].reshape(3, 4).T  # not contiguous
    for function in (path.alpha, path.sigma, path.time, lambda s: path.derivatives(s)[0]):
        assert_close(function(t), torch.stack([function(row) for row in t]), rtol=1e-14, atol=0)
        assert function(t.float()).dtype == torch.float32
        assert function(t[0, 0]).shape == ()


@every_path
def test_closed_derivatives_are_those_of_forward_differentiation(path):
    for found, expected in zip(path.derivatives(times()), Path.derivatives(path, times()), strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-12)


@every_path
def test_derivatives_are_limits_of_differences(path):
    t, h = ((times()[5:] * 999).floor() + 0.37) / 999, 1e-6  # between the timesteps of discrete paths
    for function, slope in zip((path.alpha, path.sigma), path.derivatives(t), strict=True):
        assert_close((function(t + h) - function(t - h)) / (2 * h), slope, rtol=1e-5, atol=1e-6)


@every_path
def test_derivatives_need_no_gradient_mode(path):
    t = times()[::100]
    with torch.inference_mode():
        inside = path.derivatives(t)
    for found, expected in zip(inside, path.derivatives(t), strict=True):
        assert torch.equal(found, expected)


@from_clean
def test_a_clean_sample_is_at_time_zero_with_full_signal(path):
    zero = torch.zeros(1, dtype=torch.float64)
    assert_close(path.alpha(zero), torch.ones_like(zero))
    assert_close(path.time(zero), zero)


@variance_preserving
def test_variance_preserving_paths_keep_unit_variance(path):
    assert_close(path.alpha(times()).square() + path.sigma(times()).square(), torch.ones_like(times()))


@pytest.mark.parametrize("path", [path for path in family() if isinstance(path, FromRate)], ids=name)
def test_signal_is_the_exponential_of_minus_half_the_integral_of_beta(path):
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(path.rate(t), t)
    assert_close(path.alpha(t)[1:], (-integral / 2).exp(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_power_of_a_rate_is_linear_between_its_ends(power):
    path = VPLinear(0.5, 4.0) if power == 1 else ScaledLinear(0.5, 4.0)
    ends = torch.tensor([0.5, 4.0], dtype=torch.float64) ** power
    assert_close(path.rate(times()) ** power, torch.lerp(*ends, times()))


def test_scaled_linear_is_the_limit_of_the_discrete_products():
    path, errors = ScaledLinear(), []
    for n in (1000, 2000, 4000):
        root = torch.linspace(math.sqrt(0.85 / n), math.sqrt(12.0 / n), n, dtype=torch.float64)
        discrete = torch.log1p(-root.square()).cumsum(0) / 2  # at n = 1000 the betas .00085 to .012
        exact = path.alpha(torch.arange(1, n + 1, dtype=torch.float64) / n).log()
        errors.append(float((discrete - exact).abs().max()))
    assert errors[0] < 0.03
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.01)  # first order in 1 / n


def test_trig_flow_is_the_cosine_path_for_unit_data_and_keeps_the_power_of_the_data():
    flow, cosine = TrigFlow(), VPCosine(0.0)
    assert_close(flow.alpha(times()), cosine.alpha(times()))
    assert_close(flow.sigma(times()), cosine.sigma(times()))
    assert_close(
        0.25 * TrigFlow(0.5).alpha(times()).square() + TrigFlow(0.5).sigma(times()).square(), 0.25 + 0 * times()
    )


@pytest.mark.parametrize("sigma_data", [1.0, 0.3])
def test_where_every_velocity_is_told_the_kinetic_optimum_is_rectified_flow(sigma_data):
    path, flow = KineticOptimal([0.0, 0.4, 1.5], [1.0, 1.0, 1.0], sigma_data), RectifiedFlow()
    assert_close(path.alpha(times()), flow.alpha(times()))
    assert_close(path.sigma(times()), sigma_data * flow.sigma(times()))
    assert_close(path.time(times()), flow.time(times() / sigma_data))
    assert path.energy == pytest.approx(2)


def test_a_kinetic_optimum_of_constant_shares_is_a_chord_of_a_wedge_of_their_root():
    path = KineticOptimal([0.0], [0.25])
    t = times()
    chord = t + (1 - t) * torch.polar(torch.ones(()).double(), torch.tensor(math.pi / 4).double())
    wanted = torch.polar(chord.abs(), 2 * chord.angle())  # theta = phi / sqrt(Lambda)
    assert_close(torch.complex(path.sigma(t), path.alpha(t)), wanted)
    assert path.length == pytest.approx(math.pi / 4)
    assert path.energy == pytest.approx(2 - math.sqrt(2))


def test_shares_are_clipped_their_root_is_linear_between_angles_and_constant_beyond():
    path = KineticOptimal([0.2, 0.4, 1.0, 1.2], [-3.0, 0.0, 0.25, 7.0])
    angles = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0, 1.1, 1.2, 1.5], dtype=torch.float64)
    roots = torch.tensor([0.01, 0.01, 0.01, 0.255, 0.5, 0.75, 1.0, 1.0], dtype=torch.float64)
    assert_close(path.share(angles).sqrt(), roots)


def test_angles_may_be_rounded_and_may_leave_out_the_ends():
    whole = KineticOptimal([0.0, 0.7, math.pi / 2], [0.2, 0.2, 0.9])
    rounded = KineticOptimal([0.0, 0.7, 1.570797], [0.2, 0.2, 0.9])
    inner = KineticOptimal([0.7, math.pi / 2], [0.2, 0.9])
    for path in (rounded, inner):
        assert_close(path.noise_ratio(times()), whole.noise_ratio(times()), rtol=1e-5, atol=0)


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
        (lambda: ScaledLinear(2.0, 2.0), "beta_min"),
        (lambda: TrigFlow(0.0), "sigma_data"),
        (lambda: KineticOptimal([], []), "angle"),
        (lambda: KineticOptimal([0.1, 0.2], [0.5]), "finite"),
        (lambda: KineticOptimal([0.1], [float("nan")]), "finite"),
        (lambda: KineticOptimal([0.2, 0.1], [0.5, 0.5]), "rise"),
        (lambda: KineticOptimal([0.2, 1.6], [0.5, 0.5]), "pi/2"),
        (lambda: KineticOptimal([float("nan")], [0.5]), "rise"),
        (lambda: KineticOptimal([0.1], [0.5], -1.0), "sigma_data"),
    ],
)
def test_impossible_schedules_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
