"""Kinetic energies have their closed forms, the optimum is one, and a teacher's own loss tells it."""

import math

import pytest
import torch
from kinetic_energy import Shares, estimate_shares, kinetic_energy
from tiny_runs import exact, mlp
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP
from fdistill.theory.paths import DDPMPath, KineticOptimal, Path, RectifiedFlow, TrigFlow, VPCosine, VPLinear
from fdistill.theory.preconditioning import EpsPrediction

pytestmark = pytest.mark.system  # seconds, too many for make check

ANGLES = torch.linspace(0, math.pi / 2, 801, dtype=torch.float64)
POINTS = torch.linspace(-12, 12, 6001, dtype=torch.float64)
NORMAL = (-POINTS.square() / 2).exp() / math.sqrt(2 * math.pi)


def binary_shares():
    """Of x_0 = +-1: the denoiser is tanh(x / sigma^2), so E|D - x_0|^2 = 1 - E tanh((1 + sigma z) / sigma^2)."""
    sigma = (1 / ANGLES[1:-1].tan())[:, None]
    error = torch.trapezoid(NORMAL * (1 - ((1 + sigma * POINTS) / sigma.square()).tanh()), POINTS)
    inside = 1 - error / ANGLES[1:-1].cos().square()
    return torch.cat([torch.zeros(1), inside, torch.ones(1)]).double()


BINARY = binary_shares()
TABLES = {"binary": BINARY, "told": torch.ones_like(ANGLES), "wavy": 0.5 + 0.4 * (7 * ANGLES).sin()}
every_table = pytest.mark.parametrize("shares", TABLES.values(), ids=TABLES)


def energy(path, shares, sigma_data=1.0, **times):
    return kinetic_energy(path, ANGLES.tolist(), shares.tolist(), sigma_data, **times)


def optimum(shares, sigma_data=1.0):
    return KineticOptimal(ANGLES.tolist(), shares.tolist(), sigma_data)


class Bent(Path):
    """A path whose polar radius and angle another one's are bent away from, by waves that vanish at both ends."""

    def __init__(self, path, radial, angular):
        self.path, self.radial, self.angular = path, radial, angular

    def polar(self, t):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        waves = [(math.pi * (k + 1) * t).sin() / (k + 1) for k in range(len(self.radial))]
        radius = torch.hypot(alpha, sigma) * sum(a * w for a, w in zip(self.radial, waves, strict=True)).exp()
        bend = sum(a * w for a, w in zip(self.angular, waves, strict=True))
        return radius, torch.atan2(alpha, sigma) + bend * t * (1 - t)

    def alpha(self, t):
        radius, angle = self.polar(t)
        return radius * angle.sin()

    def sigma(self, t):
        radius, angle = self.polar(t)
        return radius * angle.cos()

    def time(self, noise_ratio):
        raise NotImplementedError


def test_energies_of_binary_data_are_those_of_the_paper():
    found = [energy(path, BINARY) for path in (RectifiedFlow(), VPCosine(0.0))]
    assert found == pytest.approx([0.982, 0.869], abs=5e-4)  # arXiv 2306.06626, at three digits
    length = float(torch.trapezoid(BINARY.clamp_min(0).sqrt(), ANGLES))
    assert 2 - 2 * math.cos(length) == pytest.approx(0.459, abs=5e-4)
    assert energy(optimum(BINARY), BINARY) == pytest.approx(0.461, abs=5e-4)  # Lambda is at least 1e-4 here


@pytest.mark.parametrize("path", [RectifiedFlow(), VPCosine(0.0), optimum(BINARY)], ids=lambda p: type(p).__name__)
def test_energy_is_the_mean_square_of_the_marginal_velocity(path):
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)[:, None]
    alpha, sigma = path.alpha(t), path.sigma(t)
    alpha_slope, sigma_slope = path.derivatives(t)
    x = alpha + sigma * POINTS  # x_0 = +-1 are mirror images
    x_0 = (alpha * x / sigma.square()).tanh()
    velocity = alpha_slope * x_0 + sigma_slope * (x - alpha * x_0) / sigma
    by_time = torch.trapezoid(NORMAL * velocity.square(), POINTS)
    wide = [energy(path, BINARY, t_min=float(s) - 1e-3, t_max=float(s) + 1e-3) / 2e-3 for s in t]
    assert_close(torch.tensor(wide).double(), by_time, rtol=2e-3, atol=3e-4)  # 1e-4 (pi / 2)^2, the least share


@every_table
@pytest.mark.parametrize("sigma_data", [1.0, 0.4])
def test_the_optimum_has_the_energy_of_its_chord(shares, sigma_data):
    path = optimum(shares, sigma_data)
    root = shares.clamp(1e-4, 1).sqrt()
    assert path.length == pytest.approx(float(torch.trapezoid(root, ANGLES)), rel=1e-12)
    assert path.energy == pytest.approx(2 - 2 * math.cos(path.length), rel=1e-12)
    assert energy(path, shares, sigma_data) == pytest.approx(path.energy, rel=1e-6)


@every_table
def test_the_optimum_spends_its_energy_evenly_and_a_part_of_a_path_its_part(shares):
    path = optimum(shares)
    parts = [energy(path, shares, t_min=k / 5, t_max=(k + 1) / 5) for k in range(5)]
    assert parts == pytest.approx([path.energy / 5] * 5, rel=1e-5)
    split = [energy(RectifiedFlow(), shares, t_min=low, t_max=high) for low, high in ((0, 0.3), (0.3, 1))]
    assert sum(split) == pytest.approx(energy(RectifiedFlow(), shares), rel=1e-6)


@every_table
def test_no_path_near_the_optimum_or_known_by_name_has_less_energy(shares):
    best, generator = optimum(shares), torch.Generator().manual_seed(0)
    for path in (RectifiedFlow(), VPCosine(0.0), TrigFlow()):
        assert energy(path, shares) >= best.energy * (1 - 1e-6)
    for size in (0.01, 0.3):
        radial, angular = (size * torch.randn(2, 4, generator=generator, dtype=torch.float64)).tolist()
        for bent in (Bent(best, radial, angular), Bent(best, radial, [0.0] * 4), Bent(best, [0.0] * 4, angular)):
            assert energy(bent, shares) > best.energy


def test_energy_grows_with_the_square_of_a_bend():
    best = optimum(TABLES["wavy"])
    more = [energy(Bent(best, [s, s / 2], [-s, s]), TABLES["wavy"]) - best.energy for s in (0.02, 0.01)]
    assert more[0] / more[1] == pytest.approx(4, rel=0.05)


def test_where_every_velocity_is_told_the_straight_line_costs_two_and_the_quarter_turn_more():
    told = torch.ones_like(ANGLES)
    assert energy(RectifiedFlow(), told) == pytest.approx(2)
    assert energy(VPCosine(0.0), told) == pytest.approx(math.pi**2 / 4)
    assert optimum(told).energy == pytest.approx(2)


@pytest.mark.parametrize("path", [VPLinear(), VPCosine()], ids=lambda p: type(p).__name__)
def test_noise_that_begins_as_a_root_costs_energy_without_bound(path):
    with pytest.raises(ValueError, match=f"{type(path).__name__} from t = 0 is infinite.*t_min"):
        energy(path, BINARY)
    begin = [float(path.time(torch.tensor(s, dtype=torch.float64))) for s in (1e-3, 1e-4, 1e-5, 1e-6)]
    costs = torch.tensor([energy(path, BINARY, t_min=t) for t in begin]).diff()
    assert (costs > 0).all()
    assert float(costs[2] / costs[1]) == pytest.approx(1, rel=0.02)  # a logarithm: each decade costs the same


def test_gaussian_data_needs_no_motion_at_its_own_power():
    teacher, x_0 = exact([[0.0, 0.0]], [0.5]), 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    found = estimate_shares(teacher, x_0.double(), None, 0.5, torch.Generator().manual_seed(0), num_angles=9)
    assert (found.shares.abs() < 4 * found.standard_errors).all()
    assert energy(TrigFlow(0.5), torch.zeros_like(ANGLES), 0.5) < 1e-3  # 1e-4 (pi / 2)^2: Lambda is clipped


MEANS, STD, WEIGHTS = [[-1.0], [0.2], [1.1]], 0.3, [0.3, 0.3, 0.4]


def mixture_power():
    return math.sqrt(sum(w * (m[0] ** 2 + STD**2) for w, m in zip(WEIGHTS, MEANS, strict=True)))


def mixture_shares(angles):
    """By quadrature over x: E|D - x_0|^2 = E x_0^2 - E D^2."""
    teacher, power = exact(MEANS, [STD] * 3, WEIGHTS), mixture_power()
    shares = []
    for sigma in (power / angles.tan()).tolist():
        x = POINTS * (1.2 + sigma)
        level = torch.full_like(x, sigma)
        density = teacher.network.log_prob(x[:, None], level).exp()
        error = power**2 - torch.trapezoid(density * teacher(x[:, None], level)[:, 0].square(), x)
        shares.append(1 - float(error) * (sigma**2 + power**2) / (sigma * power) ** 2)
    return torch.tensor(shares, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture():
    teacher = exact(MEANS, [STD] * 3, WEIGHTS)
    x_0 = teacher.network.sample(20_000, torch.Generator().manual_seed(2))[0].double()
    return teacher, x_0


def estimated(mixture, **changes):
    teacher, x_0 = mixture
    arguments = {"num_angles": 15, "sigma_min": 0.02, "sigma_max": 20.0, "batch_size": 5000}
    return estimate_shares(teacher, x_0, None, mixture_power(), torch.Generator().manual_seed(0), **arguments | changes)


def test_the_estimate_of_an_exact_teacher_is_the_integral_within_its_error(mixture):
    found = estimated(mixture)
    assert isinstance(found, Shares)
    assert float(found.standard_errors.max()) < 0.02
    deviation = (found.shares - mixture_shares(found.angles)) / found.standard_errors
    assert (deviation.abs() < 4).all()
    best = KineticOptimal(found.angles.tolist(), found.shares.tolist(), mixture_power())
    truth = KineticOptimal(found.angles.tolist(), mixture_shares(found.angles).tolist(), mixture_power())
    assert best.energy == pytest.approx(truth.energy, rel=0.03)


def test_angles_lie_in_the_middle_of_equal_parts_and_pieces_of_a_batch_do_not_matter(mixture):
    whole, teacher, x_0 = estimated(mixture), *mixture
    ends = (mixture_power() / torch.tensor([20.0, 0.02], dtype=torch.float64)).atan()
    assert_close(whole.angles, ends.lerp(ends.flip(0), 1 / 30)[:1] + ends.diff() / 15 * torch.arange(15))
    labels = torch.zeros(len(x_0), dtype=torch.long)
    pieces = estimate_shares(
        teacher, x_0, labels, mixture_power(), torch.Generator().manual_seed(0), 15, 0.02, 20.0, 2500
    )
    assert_close(pieces.shares, whole.shares)


def test_neighbouring_angles_share_their_noise(mixture):
    fine = estimated(mixture, num_angles=41, sigma_min=0.4, sigma_max=0.46)
    assert float(fine.shares.diff().diff().abs().max()) < float(fine.standard_errors.max()) / 20


def test_a_teacher_of_classes_is_asked_about_the_class():
    teacher, x_0 = mlp(num_classes=2), torch.randn(40, 2)
    first, second = (
        estimate_shares(teacher, x_0, torch.full((40,), c), 1.0, torch.Generator().manual_seed(0), 3) for c in (0, 1)
    )
    assert not torch.equal(first.shares, second.shares)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_angles": 1}, "angles"),
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_max"),
        ({"sigma_max": math.inf}, "finite"),
        ({"sigma_data": 0.0}, "sigma_data > 0"),
        ({"x_0": torch.zeros(1, 2)}, "samples"),
        ({"x_0": torch.full((4, 2), math.nan)}, "finite"),
    ],
)
def test_what_cannot_be_estimated_is_refused(changes, match):
    arguments = {"x_0": torch.zeros(4, 2), "labels": None, "sigma_data": 1.0} | changes
    with pytest.raises(ValueError, match=match):
        estimate_shares(mlp(), generator=torch.Generator(), **arguments)


def test_a_teacher_is_asked_nothing_outside_of_its_path():
    teacher = Denoiser(MLP(dim=2, width=16, depth=2), EpsPrediction(DDPMPath(0.00085, 0.012, 1000), 999.0))
    with pytest.raises(ValueError, match="sigma_max"):
        estimate_shares(teacher, torch.zeros(4, 2), None, 1.0, torch.Generator(), sigma_max=80.0)


def test_a_span_of_time_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match="t_max"):
        energy(RectifiedFlow(), BINARY, t_min=0.5, t_max=0.5)
