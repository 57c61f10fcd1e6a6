"""Truths about f-divergences and the weights h(r) = r^2 f''(r) of their gradients."""

import inspect
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fdistill.theory.divergences import (
    AlphaDivergence,
    AnnealedAlpha,
    Bregman,
    BregmanLogistic,
    BregmanPower,
    ChangingDivergence,
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
    UniformlySkewedJensenShannon,
    WarmStart,
    skewed_weight,
)
from fdistill.theory.schedules import Cosine, Linear, Steps


def family():
    """Every divergence of the package at its defaults, and the parametrised ones over their range."""
    found = [cls() for cls in concrete_subclasses(FDivergence)]
    found += [AlphaDivergence(alpha) for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0, -2.5, 3.0)]
    found += [SkewedJensenShannon(skew) for skew in (0.0, 0.3, 0.5, 1.0, 1e-3, 0.999)]
    found += [UniformlySkewedJensenShannon(*skews) for skews in ((0.0, 0.4), (0.1, 0.9), (0.6, 1.0), (0.2, 0.2001))]
    return found + [BregmanPower(beta) for beta in (-1.0, 0.0, 0.5, 2.0)]


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
    log_ratio = torch.tensor([-3.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    weights = [divergence.at(update).weight(log_ratio) for update in (0, 500, 5000, 10**6)]
    assert divergence.needs_ratio == any(bool((weight != weight[0]).any()) for weight in weights)


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
    "Kullback-Leibler matching is reverse KL": (BregmanPower(0.0), 1, ReverseKL()),
    "least-squares matching is half of Neyman": (BregmanPower(1.0), 0.5, NeymanChiSquared()),
    "Itakura-Saito matching is forward KL": (BregmanPower(-1.0), 1, ForwardKL()),
    "power matching is the alpha family of the other sign": (BregmanPower(0.7), 1, AlphaDivergence(-0.7)),
    "logistic matching is Jensen-Shannon": (BregmanLogistic(), 1, JensenShannon()),
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
    "mean over skews": (UniformlySkewedJensenShannon(0.0, 0.4), UniformlySkewedJensenShannon(0.6, 1.0)),
    "power matching": (BregmanPower(0.3), BregmanPower(-1.3)),
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
        x, q, log_ratio = (values[::10] for values in unit_gaussians(distance))
        inside = x.abs() < 12
        value = torch.trapezoid(q[inside] * divergence.f(log_ratio[inside].exp()), x[inside]).item()
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

    with pytest.raises(ValueError, match="Linear"):
        Linear().weight(torch.zeros(3))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        *[(lambda skew=skew: SkewedJensenShannon(skew), r"\[0, 1\]") for skew in (-0.1, 1.1, math.nan)],
        *[(lambda alpha=alpha: AlphaDivergence(alpha), "finite") for alpha in (math.inf, math.nan)],
        *[(lambda beta=beta: BregmanPower(beta), "finite") for beta in (math.inf, math.nan)],
        *[
            (lambda skews=skews: UniformlySkewedJensenShannon(*skews), "0 <= low < high <= 1")
            for skews in ((0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0))
        ],
        (lambda: WarmStart(JensenShannon(), 0), ">= 1: got 0"),
    ],
)
def test_parameters_outside_their_range_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_members_with_different_weights_are_different_divergences():
    log_ratio = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    plain = [
        d for d in family() if not d.spec()["init_args"] and not isinstance(d, Bregman)
    ]  # known ones seen from q/p
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


def log_ratios():
    return torch.linspace(-7, 7, 57, dtype=torch.float64)


def power_row(scale, power):
    return lambda r: (scale * r**power, scale * power * r**power, scale * power * (power - 1) * r**power)


def skew_row(a):
    return lambda r: (
        r / (a * r + 1 - a),
        (1 - a) * r / (a * r + 1 - a) ** 2,
        -2 * a * (1 - a) * r**2 / (a * r + 1 - a) ** 3,
    )


class Triangular(FDivergence):
    """A user's, given by its f only."""

    def f(self, r):
        return (r - 1).square() / (r + 1)


SLOPES = [  # h, r h', r^2 h''
    (ReverseKL(), power_row(1, 0)),
    (SoftenedReverseKL(), lambda r: (1 / (1 + r), -r / (1 + r) ** 2, 2 * r**2 / (1 + r) ** 3)),
    (JensenShannon(), lambda r: (r / (1 + r), r / (1 + r) ** 2, -2 * r**2 / (1 + r) ** 3)),
    (SquaredHellinger(), lambda r: (r.sqrt() / 4, r.sqrt() / 8, -r.sqrt() / 16)),
    (ForwardKL(), power_row(1, 1)),
    (Jeffreys(), lambda r: (1 + r, r, 0 * r)),
    (NeymanChiSquared(), power_row(2, -1)),
    (PearsonChiSquared(), power_row(2, 2)),
    *[(AlphaDivergence(a), power_row(1, a)) for a in (-2.5, -1.0, 0.0, 0.3, 1.0, 2.0)],
    *[(SkewedJensenShannon(a), skew_row(a)) for a in (0.0, 1e-3, 0.3, 0.5, 0.999, 1.0)],
    *[(BregmanPower(b), power_row(1, -b)) for b in (0.0, 0.6, 1.0)],
    (BregmanLogistic(), skew_row(0.5)),
    (hellinger_twin(), lambda r: (r.sqrt() / 4, r.sqrt() / 8, -r.sqrt() / 16)),
    (
        Triangular(),
        lambda r: (
            8 * r**2 / (1 + r) ** 3,
            8 * r**2 * (2 - r) / (1 + r) ** 4,
            16 * r**2 * (r**2 - 4 * r + 1) / (1 + r) ** 5,
        ),
    ),
]


@pytest.mark.parametrize(("divergence", "row"), SLOPES, ids=[name(divergence) for divergence, _ in SLOPES])
def test_slopes_of_the_weight_are_those_of_the_table(divergence, row):
    scale = 0.5 if isinstance(divergence, BregmanLogistic) else 1  # skew 1/2 is twice Jensen-Shannon
    for found, closed in zip(divergence.weight_slopes(log_ratios()), row(log_ratios().exp()), strict=True):
        assert_close(found, scale * closed, rtol=1e-9, atol=0)


@every_divergence
def test_slopes_are_the_differences_of_the_weight(divergence):
    log_ratio, step = torch.linspace(-3, 3, 25, dtype=torch.float64), 1e-3
    left, here, right = (divergence.weight(log_ratio + shift) for shift in (-step, 0, step))
    once, twice = (right - left) / (2 * step), (right - 2 * here + left) / step**2
    slopes = divergence.weight_slopes(log_ratio)
    assert torch.equal(slopes.weight, here)
    assert_close(slopes.first, once, rtol=1e-5, atol=1e-8)
    assert_close(slopes.second, twice - once, rtol=3e-5, atol=1e-5)


@every_divergence
def test_slopes_carry_no_gradient_and_keep_shape_and_dtype(divergence):
    with torch.no_grad():
        slopes = divergence.weight_slopes(torch.zeros(3, requires_grad=True))
    assert [(slope.shape, slope.dtype, slope.requires_grad) for slope in slopes] == [((3,), torch.float32, False)] * 3


@every_divergence
def test_slopes_are_finite_at_extreme_log_ratios(divergence):
    slopes = divergence.weight_slopes(torch.tensor([-80.0, -20.0, 0.0, 20.0, 80.0], dtype=torch.float64))
    assert all(slope.isfinite().all() for slope in slopes)


def test_slopes_of_a_weight_that_cuts_its_gradient_are_refused_and_not_zero():
    class Cut(ForwardKL):
        def weight(self, log_ratio):
            return super().weight(log_ratio.detach())

    with pytest.raises(ValueError, match="needs_ratio"):
        Cut().weight_slopes(torch.zeros(2))


def test_the_weight_of_a_users_f_carries_a_gradient_only_where_the_ratio_does():
    log_ratio = log_ratios().requires_grad_()
    weight = Triangular().weight(log_ratio)
    (slope,) = torch.autograd.grad(weight.sum(), log_ratio)
    assert_close(slope, Triangular().weight_slopes(log_ratio).first, rtol=1e-12, atol=0)
    assert not Triangular().weight(log_ratio.detach()).requires_grad
    with torch.no_grad():
        assert not Triangular().weight(log_ratio).requires_grad


class ParabolaOverLine(Bregman):
    """A user's, given by its h only: h'' = 8/(rho+1)^3."""

    def h(self, rho):
        return (rho - 1).square() / (rho + 1) + 5 + 3 * rho


MATCHINGS = [BregmanPower(1.0), BregmanPower(0.0), BregmanPower(-1.0), BregmanPower(0.5), BregmanLogistic()]
every_matching = pytest.mark.parametrize("matching", [*MATCHINGS, ParabolaOverLine()], ids=name)


@every_matching
def test_bregman_divergence_of_the_ratio_from_one_is_the_f_divergence(matching):
    x, q, log_ratio = unit_gaussians(0.8)
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(matching.h(one).sum(), one)
    rho, p = (-log_ratio).exp(), q * log_ratio.exp()
    excess = matching.h(rho) - matching.h(torch.ones_like(rho)) - slope * (rho - 1)
    assert_close(torch.trapezoid(p * excess, x), torch.trapezoid(q * matching.f(1 / rho), x), rtol=1e-10, atol=0)


@every_matching
def test_weight_of_a_bregman_divergence_is_the_ratio_times_the_second_derivative_of_h(matching):
    rho = ratios().requires_grad_()
    (dh,) = torch.autograd.grad(matching.h(rho).sum(), rho, create_graph=True)
    (d2h,) = torch.autograd.grad(dh.sum(), rho)
    rho = rho.detach()
    assert_close(matching.weight(-rho.log()), rho * d2h, rtol=1e-9, atol=0)


def test_a_bregman_divergence_of_a_user_needs_h_only():
    r = ratios()
    assert_close(ParabolaOverLine().weight(r.log()), 8 * r**2 / (1 + r) ** 3, rtol=1e-9, atol=0)
    assert_close(FDivergence.weight(ParabolaOverLine(), r.log()), 8 * r**2 / (1 + r) ** 3, rtol=1e-8, atol=0)


def test_a_linear_h_is_refused_because_it_measures_nothing():
    class Linear(Bregman):
        def h(self, rho):
            return 3 * rho

    with pytest.raises(ValueError, match="Linear"):
        Linear().weight(torch.zeros(3))


def gauss(low, high, n=80):
    nodes, shares = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(n))
    return low + (high - low) * (nodes + 1) / 2, shares / 2


@pytest.mark.parametrize(
    ("low", "high", "reach"), [(0, 1, 4), (0.1, 0.9, 7), (0, 0.5, 4), (0.5, 1, 4), (0.3, 0.301, 7)]
)
def test_mean_weight_over_uniform_skews_is_the_quadrature_of_the_skewed_weight(low, high, reach):
    near = torch.tensor([-0.021, -0.019, -1e-8, 0.0, 1e-8, 0.019, 0.021], dtype=torch.float64)
    log_ratio = torch.cat([near, torch.linspace(-reach, reach, 33, dtype=torch.float64)])
    skew, share = gauss(low, high)
    mean = (share[:, None] * skewed_weight(log_ratio, skew[:, None])).sum(0)
    assert_close(UniformlySkewedJensenShannon(low, high).weight(log_ratio), mean, rtol=1e-12, atol=0)


def test_mean_divergence_over_uniform_skews_is_the_quadrature_of_the_skewed_divergences():
    r, (skew, share) = ratios(), gauss(0.1, 0.9)
    mean = sum(w * SkewedJensenShannon(a).f(r) for a, w in zip(skew.tolist(), share, strict=True))
    assert_close(UniformlySkewedJensenShannon(0.1, 0.9).f(r), mean, rtol=1e-11, atol=1e-12)


def test_mean_weight_over_skews_keeps_its_limits_at_extreme_log_ratios():
    for dtype in (torch.float32, torch.float64):
        log_ratio = torch.tensor([-80.0, 80.0], dtype=dtype)
        exact = torch.tensor([80 * math.exp(-80), 80.0], dtype=dtype)  # r ln(1/r) and ln r
        assert_close(UniformlySkewedJensenShannon().weight(log_ratio), exact, rtol=1e-6, atol=0)


def test_every_sample_may_have_a_skew_of_its_own():
    skews, log_ratio = [0.0, 1e-3, 0.3, 0.5, 0.999, 1.0], torch.linspace(-20, 20, 6, dtype=torch.float64)
    alone = [SkewedJensenShannon(skew).weight(at[None])[0] for skew, at in zip(skews, log_ratio, strict=True)]
    together = skewed_weight(log_ratio, torch.tensor(skews, dtype=torch.float64))
    assert_close(together, torch.stack(alone), rtol=1e-14, atol=0)
    r, a = log_ratio.exp(), torch.tensor(skews, dtype=torch.float64)
    assert_close(together, r / (a * r + 1 - a), rtol=1e-12, atol=0)
    assert skewed_weight(log_ratio.float(), torch.tensor(skews)).dtype == torch.float32


def test_gradient_of_the_skewed_weight_is_finite_where_another_skew_would_overflow():
    log_ratio = torch.tensor([-1e4, 80.0, 1e4, 1e4], requires_grad=True)
    weight = skewed_weight(log_ratio, torch.tensor([0.0, 0.0, 0.3, 1.0]))
    assert weight.isfinite().all()
    assert torch.autograd.grad(weight.sum(), log_ratio)[0].isfinite().all()


def test_a_divergence_that_does_not_change_is_itself_at_every_update():
    fixed = [divergence for divergence in family() if not isinstance(divergence, ChangingDivergence)]
    assert all(divergence.at(update) is divergence for divergence in fixed for update in (0, 10**6))


def test_annealed_alpha_goes_from_reverse_kl_to_forward_kl():
    plan, log_ratio = AnnealedAlpha(Linear(0.0, 1.0, 100)), log_ratios()
    for update, known in ((0, ReverseKL()), (50, AlphaDivergence(0.5)), (100, ForwardKL()), (1000, ForwardKL())):
        assert torch.equal(plan.at(update).weight(log_ratio), known.weight(log_ratio))


def test_warm_start_hands_over_at_its_update_and_its_schedule_has_been_running_since_the_start():
    plan = WarmStart(AnnealedAlpha(Linear(0.0, 1.0, 100)), 40)
    assert isinstance(plan.at(39), ReverseKL)
    assert [plan.at(update).alpha for update in (40, 70, 200)] == [0.4, 0.7, 1.0]
    later = WarmStart(AnnealedAlpha(Linear(0.0, 1.0, 100, delay=40)), 40)
    assert [later.at(update).alpha for update in (40, 90)] == [0.0, 0.5]
    nested = WarmStart(WarmStart(ForwardKL(), 20, JensenShannon()), 10)
    assert [type(nested.at(update)) for update in (9, 10, 20)] == [ReverseKL, JensenShannon, ForwardKL]


def test_a_plan_needs_a_ratio_from_the_beginning_if_a_later_stage_does():
    assert WarmStart(JensenShannon(), 100).needs_ratio
    assert WarmStart(ReverseKL(), 100, first=ForwardKL()).needs_ratio
    assert not WarmStart(ReverseKL(), 100).needs_ratio
    assert AnnealedAlpha(Linear(0.0, 1.0, 10)).needs_ratio
    assert not WarmStart(JensenShannon(), 100).at(0).needs_ratio


def test_a_plan_by_itself_is_its_first_stage():
    r, plan = ratios(), AnnealedAlpha(Steps((2.0, 0.0), (1,)))
    assert torch.equal(plan.f(r), AlphaDivergence(2.0).f(r))
    assert torch.equal(plan.weight(r.log()), AlphaDivergence(2.0).weight(r.log()))
    assert torch.equal(plan.weight_slopes(r.log()).second, AlphaDivergence(2.0).weight_slopes(r.log()).second)


@pytest.mark.parametrize(
    "plan",
    [
        AnnealedAlpha(Cosine(0.0, 1.0, 100, delay=5)),
        WarmStart(AnnealedAlpha(Steps((0.0, 0.5, 2.0), (30, 60))), 10, first=SkewedJensenShannon(0.9)),
        WarmStart(WarmStart(UniformlySkewedJensenShannon(0.1, 0.8), 60), 20, BregmanPower(0.5)),
    ],
    ids=lambda plan: type(plan).__name__,
)
def test_a_plan_is_rebuilt_from_its_description_with_everything_inside(plan):
    again, log_ratio = FDivergence.from_spec(json.loads(json.dumps(plan.spec()))), log_ratios()
    assert again.spec() == plan.spec()
    for update in range(0, 120, 5):
        assert torch.equal(again.at(update).weight(log_ratio), plan.at(update).weight(log_ratio))
