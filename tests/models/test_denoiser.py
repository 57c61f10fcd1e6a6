"""Every kind of network becomes the same denoiser."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, Encoding, GaussianMixture, Network, SmallUNet
from fdistill.theory.paths import (
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
from fdistill.theory.preconditioning import (
    EDM,
    ConsistencyEDM,
    Direct,
    EpsPrediction,
    Preconditioning,
    TrigFlowPrediction,
    VelocityPrediction,
    VEScorePrediction,
    VPrediction,
    X0Prediction,
)

MIXTURE = GaussianMixture([[-1.0, 0.5], [0.8, 0.2], [0.0, -1.5]], [0.2, 0.4, 0.1], [0.5, 0.2, 0.3])
SIGMA_DATA = 0.7
SIGMA_MIN = 0.004  # of a consistency model


class ExactNetwork(Network):
    """What a perfectly trained network outputs at (x_t, t), from E[x_0 | x_t] and the definition of its target."""

    def __init__(self, path, target, time_scale):
        super().__init__()
        self.path, self.target, self.time_scale = path, target, time_scale
        self.sample_shape, self.num_classes, self.feature_channels = (2,), 0, (2,)

    def encode(self, x, noise, labels):
        return Encoding((x,), (x, noise / self.time_scale))

    def decode(self, encoding):
        x_t, t = encoding.state
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        x_0 = MIXTURE(x_t / alpha, (sigma / alpha)[:, 0])
        eps = (x_t - alpha * x_0) / sigma
        alpha_slope, sigma_slope = (slope[:, None] for slope in Path.derivatives(self.path, t))
        velocity = alpha_slope * x_0 + sigma_slope * eps
        return {"eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0, "velocity": velocity}[self.target]


class ExactEDMNetwork(ExactNetwork):
    """The effective training target of EDM (arXiv 2206.00364, equation 8) in expectation: (x_0 - c_skip x) / c_out."""

    def decode(self, encoding):
        scaled, noise = encoding.state
        sigma = (4 * noise).exp()[:, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        x = scaled * total
        return (MIXTURE(x, sigma[:, 0]) - SIGMA_DATA**2 / total**2 * x) / (sigma * SIGMA_DATA / total)


class ExactBoundaryNetwork(ExactNetwork):
    """The same for consistency models, whose D is the identity at sigma_min (arXiv 2303.01469, appendix C)."""

    def decode(self, encoding):
        scaled, noise = encoding.state
        sigma = (4 * noise).exp()[:, None]
        x, above = scaled * (sigma**2 + SIGMA_DATA**2).sqrt(), sigma - SIGMA_MIN
        skip = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2)
        out = SIGMA_DATA * above / (sigma**2 + SIGMA_DATA**2).sqrt()
        return (MIXTURE(x, sigma[:, 0]) - skip * x) / out


class ExactScoreNetwork(ExactNetwork):
    """sigma times the gradient of the log density, at the noise input ln(sigma / 2) (arXiv 2011.13456)."""

    def decode(self, encoding):
        x, noise = encoding.state
        sigma, x = 2 * noise.exp(), x.detach().requires_grad_()
        (score,) = torch.autograd.grad(MIXTURE.log_prob(x, sigma).sum(), x)
        return sigma[:, None] * score


class ExactConsistencyNetwork(ExactNetwork):
    """TrigFlow's target in expectation (arXiv 2410.11081): sigma_data F = dx_t/dt, x_t = cos(t) x_0 + sin(t) z."""

    def decode(self, encoding):
        scaled, radians = encoding.state
        x_t, cosine, sine = scaled * SIGMA_DATA, radians.cos()[:, None], radians.sin()[:, None]
        x_0 = MIXTURE(x_t / cosine, SIGMA_DATA * radians.tan())
        z = (x_t - cosine * x_0) / sine
        return (cosine * z - sine * x_0) / SIGMA_DATA


PATHS = {"linear": VPLinear(), "cosine": VPCosine(), "flow": RectifiedFlow(), "exploding": VarianceExploding()}
PATHS |= {"trig": TrigFlow(SIGMA_DATA), "scaled": ScaledLinear(), "bare cosine": VPCosine(0.0)}
PATHS["kinetic"] = KineticOptimal([0.0, 0.4, 0.8, 1.5], [0.02, 0.3, 0.9, 0.2], SIGMA_DATA)
BUILDERS = {
    "eps": EpsPrediction,
    "x_0": X0Prediction,
    "v": VPrediction,
    "velocity": lambda path, scale: VelocityPrediction(scale, path),
}
CASES = {
    f"{target} {name} {scale:g}": (ExactNetwork(path, target, scale), build(path, scale))
    for target, build in BUILDERS.items()
    for name, path in PATHS.items()
    for scale in (1.0, 1000.0)
    if target != "v" or isinstance(path, VariancePreserving)
}
CASES |= {
    f"TrigFlow {scale:g}": (ExactConsistencyNetwork(None, None, scale), TrigFlowPrediction(SIGMA_DATA, scale))
    for scale in (1.0, 1000.0)
}
CASES["score"] = (ExactScoreNetwork(None, None, 1.0), VEScorePrediction())
CASES["boundary"] = (ExactBoundaryNetwork(None, None, 1.0), ConsistencyEDM(SIGMA_DATA, SIGMA_MIN))
CASES["EDM"] = (ExactEDMNetwork(None, None, 1.0), EDM(SIGMA_DATA))


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_velocity_of_rectified_flow_is_denoised_by_its_time_to_rounding(dtype):
    sigma = torch.logspace(-4, 3, 2001, dtype=dtype)
    t = sigma / (1 + sigma)
    for found, expected in zip(VelocityPrediction(7.0).coefficients(sigma), (1 - t, -t, 1 - t, 7 * t), strict=True):
        assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_velocity_is_what_the_signal_and_the_noise_add_up_to_in_time(path):
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    x_0, eps = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = 1e-6
    ahead, behind = (path.alpha(s) * x_0 + path.sigma(s) * eps for s in (t + h, t - h))
    skip, out, _, _ = VelocityPrediction(path=path).coefficients(path.noise_ratio(t))
    x = x_0 + path.noise_ratio(t) * eps
    assert_close(skip * x + out * (ahead - behind) / (2 * h), x_0, rtol=1e-6, atol=1e-6)


def test_consistency_models_predict_the_velocity_of_trig_flow_in_their_own_units():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    theirs, ours = (
        found.coefficients(sigma) for found in (TrigFlowPrediction(0.4), VelocityPrediction(path=TrigFlow(0.4)))
    )
    assert_close(theirs.skip, ours.skip)
    assert_close(theirs.out, torch.pi / 2 * 0.4 * ours.out)
    assert_close(theirs.input, ours.input / 0.4)
    assert_close(theirs.noise, torch.pi / 2 * ours.noise)


def test_consistency_models_leave_their_smallest_noise_as_it_is_and_are_edm_without_it():
    skip, out, _, _ = ConsistencyEDM(SIGMA_DATA, SIGMA_MIN).coefficients(torch.tensor([SIGMA_MIN], dtype=torch.float64))
    assert (skip.item(), out.item()) == (1.0, 0.0)
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    for ours, edm in zip(ConsistencyEDM(0.4, 0.0).coefficients(sigma), EDM(0.4).coefficients(sigma), strict=True):
        assert_close(ours, edm, rtol=1e-14, atol=0)


def noisy(sigma, n=64):
    generator = torch.Generator().manual_seed(0)
    x_0 = MIXTURE.sample(n, generator)[0].double()
    return x_0 + sigma * torch.randn(n, 2, dtype=torch.float64, generator=generator), torch.full((n,), sigma).double()


@pytest.mark.parametrize(("network", "preconditioning"), CASES.values(), ids=CASES)
def test_every_exact_network_becomes_the_exact_denoiser(network, preconditioning):
    x, level = map(torch.cat, zip(*map(noisy, (0.01, 0.1, 0.5, 2.0, 15.0, 80.0)), strict=True))
    assert_close(Denoiser(network, preconditioning)(x, level), MIXTURE(x, level), rtol=1e-10, atol=1e-10)


def test_every_preconditioning_of_the_package_has_its_exact_network():
    denoising = set(concrete_subclasses(Preconditioning)) - {Direct}  # a generator has no noise level
    assert {type(preconditioning) for _, preconditioning in CASES.values()} == denoising


@pytest.mark.parametrize("path", [RectifiedFlow(), VarianceExploding()], ids=lambda path: type(path).__name__)
def test_v_prediction_off_the_unit_circle_is_refused(path):
    with pytest.raises(ValueError, match=f"variance-preserving.*{type(path).__name__}"):
        VPrediction(path)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan")])
def test_data_without_spread_is_refused(sigma_data):
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data)


def test_edm_inputs_and_targets_have_unit_variance():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    skip, out, scale, noise = EDM(SIGMA_DATA).coefficients(sigma)
    one = torch.ones_like(sigma)
    assert_close(scale.square() * (sigma**2 + SIGMA_DATA**2), one)
    assert_close(((1 - skip) ** 2 * SIGMA_DATA**2 + skip**2 * sigma**2) / out**2, one)  # Var[(x_0 - skip x) / out]
    assert_close((4 * noise).exp(), sigma)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_score_is_the_gradient_of_the_log_density(sigma):
    x, level = noisy(sigma)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, level).sum(), x)
    exact = Denoiser(MIXTURE, X0Prediction(VarianceExploding()))
    assert_close(exact.score(x, level), gradient, rtol=1e-9, atol=1e-9)


def conditional_denoiser():
    torch.manual_seed(0)
    return Denoiser(MLP(dim=2, width=16, depth=2, num_classes=3).double(), EDM(SIGMA_DATA))


def test_the_two_halves_make_the_whole_and_detached_features_carry_no_gradient():
    denoiser, (x, level) = conditional_denoiser(), noisy(0.5)
    half = denoiser.encode(x.requires_grad_(), level, torch.zeros(64, dtype=torch.long))
    assert torch.equal(denoiser.finish(half), denoiser(x, level, torch.zeros(64, dtype=torch.long)))
    assert all(tap.requires_grad for tap in half.features)
    assert not any(tap.requires_grad for tap in half.detach_features().features)
    assert torch.equal(denoiser.finish(half.detach_features()), denoiser.finish(half))


def test_coefficients_multiply_samples_of_any_shape():
    torch.manual_seed(0)
    denoiser = Denoiser(SmallUNet(resolution=8, channels=3, widths=(8,)).double(), EDM(SIGMA_DATA))
    x, level = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0.01, 0.1, 1.0, 10.0]).double()
    together = denoiser(x, level)
    alone = torch.cat([denoiser(x[i : i + 1], level[i : i + 1]) for i in range(4)])
    assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_the_denoiser_of_vanishing_noise_is_the_identity():
    denoiser = conditional_denoiser()
    x = torch.randn(8, 2, dtype=torch.float64)
    level = torch.full((8,), 1e-9, dtype=torch.float64)
    assert_close(denoiser(x, level, torch.zeros(8, dtype=torch.long)), x, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "levels", "match"),
    [((4, 2), (1,), r"\(4,\), got \(1,\)"), ((4, 2), (), "level"), ((4, 3), (4,), r"\(2,\): got \(3,\)")],
)
def test_samples_and_noise_levels_that_do_not_fit_are_refused(shape, levels, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(MIXTURE, X0Prediction(VarianceExploding()))(torch.zeros(shape), torch.ones(levels))
