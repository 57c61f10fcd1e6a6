"""Truths about f-divergences and the weights h(r) = r^2 f''(r) of their gradients."""

import inspect
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.divergences import (
    AlphaDivergence,
    FDivergence,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    NeymanChiSquared,
    PearsonChiSquared,
    ReverseKL,
    SkewedJensenShannon,
    SoftenedReverseKL,
    SquaredHellinger,
)


def family():
    """Every divergence of the package at its defaults, and the two parametrised ones over their range."""
    found = [cls() for cls in concrete_subclasses(FDivergence)]
    found += [AlphaDivergence(alpha) for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0, -2.5, 3.0)]
    return found + [SkewedJensenShannon(skew) for skew in (0.0, 0.3, 0.5, 1.0, 1e-3, 0.999)]


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def name(divergence):
    if not isinstance(divergence, FDivergence):
        return str(divergence)
    arguments = divergence.spec()["init_args"].values()
    return "-".join([type(divergence).__name__, *map(str, arguments)])


every_divergence = pytest.mark.parametrize("divergence", family(), ids=name)


def ratios():
    return torch.logspace(-3, 3, 61, dtype=torch.float64)


@every_divergence
def test_weight_is_r_squared_times_second_derivative_of_f(divergence):
    r = ratios().requires_grad_()
    (df,) = torch.autograd.grad(divergence.f(r).sum(), r, create_graph=True)
    (d2f,) = torch.autograd.grad(df.sum(), r)
    assert_close(divergence.weight(r.detach().log()), r.detach() ** 2 * d2f, rtol=1e-9, atol=0)


@every_divergence
def test_weight_by_automatic_differentiation_equals_the_closed_form(divergence):
    log_ratio = ratios().log()
    assert_close(FDivergence.weight(divergence, log_ratio), divergence.weight(log_ratio), rtol=1e-9, atol=0)


@every_divergence
def test_f_vanishes_at_equal_densities(divergence):
    assert_close(divergence.f(torch.ones(1, dtype=torch.float64)).item(), 0.0, rtol=0, atol=1e-12)


@every_divergence
def test_weight_is_positive_because_f_is_strictly_convex(divergence):
    assert (divergence.weight(ratios().log()) > 0).all()


@every_divergence
def test_a_ratio_is_needed_exactly_where_the_weight_depends_on_it(divergence):
    weight = divergence.weight(torch.tensor([-3.0, 0.0, 0.5, 3.0], dtype=torch.float64))
    assert divergence.needs_ratio == bool((weight != weight[0]).any())


@every_divergence
def test_weight_carries_no_gradient_and_keeps_shape_and_dtype(divergence):
    with torch.no_grad():
        weight = divergence.weight(torch.zeros(2, 3))
    assert weight.shape == (2, 3)
    assert weight.dtype == torch.float32
    assert not weight.requires_grad


def hellinger_twin():
    class Twin(FDivergence):
        def f(self, r):
            return 1 - r.sqrt()

    return Twin()


IDENTITIES = {
    "alpha 0 is reverse KL": (AlphaDivergence(0.0), 1, ReverseKL()),
    "alpha 1 is forward KL": (AlphaDivergence(1.0), 1, ForwardKL()),
    "alpha 1/2 is four times Hellinger": (AlphaDivergence(0.5), 4, SquaredHellinger()),
    "alpha 2 is half of Pearson": (AlphaDivergence(2.0), 0.5, PearsonChiSquared()),
    "alpha -1 is half of Neyman": (AlphaDivergence(-1.0), 0.5, NeymanChiSquared()),
    "skew 0 is forward KL": (SkewedJensenShannon(0.0), 1, ForwardKL()),
    "skew 1/2 is twice Jensen-Shannon": (SkewedJensenShannon(0.5), 2, JensenShannon()),
    "skew 1 is reverse KL": (SkewedJensenShannon(1.0), 1, ReverseKL()),
    "f alone is enough": (hellinger_twin(), 1, SquaredHellinger()),
}


@pytest.mark.parametrize(("member", "multiple", "known"), IDENTITIES.values(), ids=IDENTITIES)
def test_family_identity(member, multiple, known):
    r = ratios()
    assert_close(member.weight(r.log()), multiple * known.weight(r.log()), rtol=1e-9, atol=0)
    (slope,) = [(member.f(1 + h) - multiple * known.f(1 + h)) / h for h in [torch.tensor([1e-3], dtype=torch.float64)]]
    assert_close(member.f(r), multiple * known.f(r) + slope * (r - 1), rtol=1e-8, atol=1e-9)


SUMS = {
    "Jeffreys is both KL": (Jeffreys(), ForwardKL(), ReverseKL()),
    "reverse KL is its softened form and Jensen-Shannon": (ReverseKL(), SoftenedReverseKL(), JensenShannon()),
}


@pytest.mark.parametrize(("whole", "first", "second"), SUMS.values(), ids=SUMS)
def test_sum_identity(whole, first, second):
    r = ratios()
    assert_close(whole.f(r), first.f(r) + second.f(r), rtol=1e-12, atol=1e-12)
    assert_close(whole.weight(r.log()), first.weight(r.log()) + second.weight(r.log()), rtol=1e-12, atol=0)


DUALS = {
    "KL": (ForwardKL(), ReverseKL()),
    "chi squared": (PearsonChiSquared(), NeymanChiSquared()),
    "Hellinger": (SquaredHellinger(), SquaredHellinger()),
    "Jensen-Shannon": (JensenShannon(), JensenShannon()),
    "Jeffreys": (Jeffreys(), Jeffreys()),
    "alpha": (AlphaDivergence(0.3), AlphaDivergence(0.7)),
    "skew": (SkewedJensenShannon(0.3), SkewedJensenShannon(0.7)),
}


@pytest.mark.parametrize(("here", "there"), DUALS.values(), ids=DUALS)
def test_exchanging_teacher_and_student_gives_the_dual_divergence(here, there):
    log_ratio = ratios().log()  # D_f(q||p) belongs to r f(1/r), whose weight is r h(1/r)
    assert_close(there.weight(log_ratio), log_ratio.exp() * here.weight(-log_ratio), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "divergence",
    [ReverseKL(), SoftenedReverseKL(), JensenShannon(), SkewedJensenShannon(0.3), SkewedJensenShannon(1.0)],
    ids=name,
)
def test_bounded_weights_stay_finite_and_bounded_at_extreme_log_ratios(divergence, dtype):
    weight = divergence.weight(torch.tensor([-80.0, 80.0, -1e4, 1e4], dtype=dtype))
    bound = 1 / divergence.skew if isinstance(divergence, SkewedJensenShannon) else 1
    assert weight.isfinite().all()
    assert ((weight >= 0) & (weight <= bound * (1 + 1e-6))).all()


def test_jensen_shannon_weight_does_not_round_to_zero_at_log_ratio_minus_80():
    weight = JensenShannon().weight(torch.tensor([-80.0, 80.0], dtype=torch.float64))
    assert_close(weight, torch.tensor([math.exp(-80), 1.0], dtype=torch.float64), rtol=1e-12, atol=0)


def unit_gaussians(distance):
    """Grid, density of q = N(0, 1) and log ratio to p = N(distance, 1)."""
    x = torch.linspace(-24, 32, 40_001, dtype=torch.float64)
    q = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    return x, q, distance * x - distance**2 / 2


def normalised_variance(divergence, distance):
    x, q, log_ratio = unit_gaussians(distance)
    weight = divergence.weight(log_ratio)
    mean = torch.trapezoid(q * weight, x)
    return (torch.trapezoid(q * weight.square(), x) / mean**2 - 1).item()


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 2.5])
@pytest.mark.parametrize(
    ("divergence", "closed_form"),
    [
        (ReverseKL(), lambda d: 0.0),
        (SquaredHellinger(), lambda d: math.expm1(d**2 / 4)),
        (ForwardKL(), lambda d: math.expm1(d**2)),
        (Jeffreys(), lambda d: math.expm1(d**2) / 4),
    ],
    ids=["reverse KL", "Hellinger", "forward KL", "Jeffreys"],
)
def test_variance_of_the_weight_between_unit_gaussians(divergence, closed_form, distance):
    assert normalised_variance(divergence, distance) == pytest.approx(closed_form(distance), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (ReverseKL(), 0.0),
        (SoftenedReverseKL(), 0.1029),
        (JensenShannon(), 1.2242),
        (SquaredHellinger(), 1.7183),
        (ForwardKL(), 53.598),
        (Jeffreys(), 13.400),
    ],
    ids=name,
)
def test_variance_of_the_weight_at_distance_two(divergence, value):
    assert normalised_variance(divergence, 2.0) == pytest.approx(value, abs=5e-4 if value > 10 else 5e-5)


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0, 2.0])
def test_variance_of_the_weight_grows_as_the_exponential_of_alpha_squared(power):
    # r is log-normal, so Var/E^2 of r^alpha is e^{alpha^2 d^2} - 1
    assert normalised_variance(AlphaDivergence(power), 1.5) == pytest.approx(math.expm1((power * 1.5) ** 2), rel=1e-9)


@every_divergence
def test_divergence_is_positive_between_different_gaussians_and_zero_between_equal_ones(divergence):
    for distance in (0.0, 0.8):
        x, q, log_ratio = unit_gaussians(distance)
        inside = x.abs() < 12
        value = torch.trapezoid((q * divergence.f(log_ratio.exp()))[inside], x[inside]).item()
        assert value == pytest.approx(0, abs=1e-10) if distance == 0 else value > 1e-3


def test_divergence_of_a_user_needs_f_only():
    class Triangular(FDivergence):  # (r-1)^2/(r+1): f'' = 8/(r+1)^3
        def f(self, r):
            return (r - 1).square() / (r + 1)

    r = ratios()
    assert_close(Triangular().weight(r.log()), 8 * r**2 / (1 + r) ** 3, rtol=1e-9, atol=0)
    assert Triangular().needs_ratio


@pytest.mark.parametrize("slope", [1.0, -3.0])
def test_a_linear_f_is_refused_because_it_measures_nothing(slope):
    class Linear(FDivergence):
        def f(self, r):
            return slope * (r - 1)

    with pytest.raises(ValueError, match=r"strictly convex.*Linear"):
        Linear().weight(torch.zeros(3))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        *[(lambda skew=skew: SkewedJensenShannon(skew), r"\[0, 1\]") for skew in (-0.1, 1.1, math.nan)],
        *[(lambda alpha=alpha: AlphaDivergence(alpha), "finite") for alpha in (math.inf, math.nan)],
    ],
)
def test_parameters_outside_their_range_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_members_with_different_weights_are_different_divergences():
    log_ratio = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    plain = [d for d in family() if not d.spec()["init_args"]]
    for one, other in itertools.combinations(plain, 2):
        assert not torch.allclose(one.weight(log_ratio), other.weight(log_ratio))


def test_the_weight_of_a_users_f_is_right_in_float32_where_float32_arithmetic_would_cancel():
    class OnlyF(FDivergence):
        def f(self, r):
            return r * r.log() - (1 + r) * ((1 + r) / 2).log()

    log_ratio = torch.tensor([-15.0, 0.0, 15.0])
    weight = OnlyF().weight(log_ratio)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, log_ratio.sigmoid(), rtol=1e-5, atol=1e-12)
