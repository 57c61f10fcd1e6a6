"""A loss weight is one function of the signal-to-noise ratio, and the same loss in every form of the prediction."""

import inspect
import json
import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.objectives import weighted_denoising_loss
from fdistill.theory.loss_weights import (
    P2,
    ConstantEps,
    ConstantV,
    ConstantVelocity,
    ConstantX0,
    Debias,
    EDMWeight,
    LossWeight,
    MinSNR,
    Sigmoid,
    TruncatedSNR,
)
from fdistill.theory.paths import RectifiedFlow, VPCosine, VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction, VelocityPrediction, VPrediction, X0Prediction

SIGMA = torch.logspace(-4, 4, 81, dtype=torch.float64)
SNR = SIGMA**-2
INSIDE = torch.logspace(-4, 3, 71, dtype=torch.float64)  # where Debias does not clamp S

PREDICTIONS = {
    "eps": EpsPrediction(VPCosine()),
    "v": VPrediction(VPLinear()),
    "x0": X0Prediction(VPLinear()),
    "velocity": VelocityPrediction(),
    "EDM": EDM(0.7),
}
ON_ITS_OWN_NETWORK = [
    (ConstantEps(), PREDICTIONS["eps"]),
    (ConstantV(), PREDICTIONS["v"]),
    (ConstantX0(), PREDICTIONS["x0"]),
    (ConstantVelocity(), PREDICTIONS["velocity"]),
    (EDMWeight(0.7), PREDICTIONS["EDM"]),
]


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def curved():
    """A learnt uncertainty that has learnt something."""
    weight = LearnedUncertainty(0.7)
    with torch.no_grad():
        weight.slopes.copy_(0.3 * torch.randn(32, generator=torch.Generator().manual_seed(0)))
        weight.level.fill_(-1.0)
    return weight


def named(weight):
    return type(weight).__name__


FAMILY = [cls() for cls in concrete_subclasses(LossWeight)]
EXAMPLES = [*FAMILY, curved(), EDMWeight(2.0), MinSNR(0.3), P2(0.1, 2.5), Sigmoid(-3.0), Debias(0.0, math.inf)]
every_weight = pytest.mark.parametrize("weight", EXAMPLES, ids=named)


def test_every_row_of_the_table_is_there():
    rows = {ConstantEps, ConstantX0, ConstantV, ConstantVelocity, EDMWeight, TruncatedSNR, MinSNR, P2, Sigmoid, Debias}
    assert {type(weight) for weight in FAMILY} >= rows | {LearnedUncertainty}


@every_weight
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_form_is_positive_finite_and_of_the_precision_asked_for(weight, dtype):
    sigma, snr = SIGMA.to(dtype), SNR.to(dtype)
    forms = [weight.eps(snr), weight.x0(snr), weight.v(snr), weight.velocity(snr), weight.denoiser(sigma)]
    forms += [weight.network(sigma, preconditioning) for preconditioning in PREDICTIONS.values()]
    for values in forms:
        assert values.dtype == dtype
        assert values.shape == sigma.shape
        assert (values > 0).all()
        assert values.isfinite().all()


@every_weight
def test_single_precision_loses_nothing_at_either_end(weight):
    for form, at in ((weight.eps, SNR), (weight.x0, SNR), (weight.v, SNR), (weight.velocity, SNR)):
        assert_close(form(at.float()).double(), form(at), rtol=2e-5, atol=0)
    assert_close(weight.denoiser(SIGMA.float()).double(), weight.denoiser(SIGMA), rtol=2e-5, atol=0)


@every_weight
def test_description_rebuilds_the_weight(weight):
    spec = json.loads(json.dumps(weight.spec()))
    again = LossWeight.from_spec(spec)
    assert again.spec() == spec
    if isinstance(weight, LearnedUncertainty):
        again.load_state_dict(weight.state_dict())
    assert torch.equal(again.eps(SNR), weight.eps(SNR))


@every_weight
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_same_in_every_form_of_any_networks_prediction(weight, prediction):
    generator = torch.Generator().manual_seed(1)
    x_0, eps, output = torch.randn(3, 81, 5, generator=generator, dtype=torch.float64)
    sigma, preconditioning = torch.logspace(-2.5, 2, 81, dtype=torch.float64), PREDICTIONS[prediction]
    skip, out, *_ = preconditioning.coefficients(sigma)
    x = x_0 + sigma[:, None] * eps
    denoised = skip[:, None] * x + out[:, None] * output
    eps_hat, target = (x - denoised) / sigma[:, None], (x_0 - skip[:, None] * x) / out[:, None]
    path = VPCosine()
    alpha, sigma_t = (scale(path.time(sigma))[:, None] for scale in (path.alpha, path.sigma))

    def loss(form, true, guess):
        return form * (true - guess).square().sum(dim=1)

    snr = sigma**-2
    losses = [
        loss(weight.eps(snr), eps, eps_hat),
        loss(weight.x0(snr), x_0, denoised),
        loss(weight.v(snr), alpha * eps - sigma_t * x_0, alpha * eps_hat - sigma_t * denoised),
        loss(weight.velocity(snr), eps - x_0, eps_hat - denoised),
        loss(weight.denoiser(sigma), x_0, denoised),
        loss(weight.network(sigma, preconditioning), target, output),
    ]
    for other in losses[1:]:
        assert_close(other, losses[0], rtol=1e-8, atol=0)


@pytest.mark.parametrize(("weight", "preconditioning"), ON_ITS_OWN_NETWORK, ids=lambda part: type(part).__name__)
def test_a_constant_weight_is_one_on_the_output_it_is_named_after(weight, preconditioning):
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64)
    assert_close(weight.network(sigma, preconditioning), torch.ones_like(sigma))


def test_debias_is_the_geometric_mean_of_constant_eps_and_constant_x0():
    assert_close(Debias().eps(INSIDE).square(), ConstantEps().eps(INSIDE) * ConstantX0().eps(INSIDE))


def test_debias_in_the_other_forms():
    sigma = INSIDE.rsqrt()
    t = RectifiedFlow().time(sigma)
    assert_close(Debias().v(INSIDE), INSIDE.sqrt() / (1 + INSIDE))
    assert_close(Debias().velocity(INSIDE), t * (1 - t))
    assert_close(Debias().denoiser(sigma), 1 / sigma)


def test_debias_does_not_fall_below_its_clamp_which_the_cosine_path_would_pass():
    first = VPCosine().noise_ratio(torch.tensor([0.001], dtype=torch.float64)) ** -2
    # the first rate of arXiv 2102.09672 is 1 - f(1/1000) / f(0), f(t) = cos^2(pi/2 (t + 0.008) / 1.008)
    rate = 1 - math.cos(math.pi / 2 * 0.009 / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    assert first.item() == pytest.approx(1 / rate - 1, rel=1e-9)
    assert round(first.item()) == 24_221
    assert Debias().eps(first).item() == pytest.approx(1e3**-0.5)
    assert Debias(snr_max=math.inf).eps(first).item() == pytest.approx(24_221**-0.5, rel=1e-4)
    assert Debias().eps(torch.tensor([1e-9])).item() == pytest.approx(100)


def test_min_snr_and_truncated_snr_bound_the_weight_of_the_clean_sample():
    assert_close(MinSNR(5.0).x0(SNR), torch.minimum(SNR, torch.full_like(SNR, 5.0)))
    assert_close(TruncatedSNR().x0(SNR), torch.maximum(SNR, torch.ones_like(SNR)))


def test_p2_is_a_soft_min_snr():
    assert_close(1 / P2().x0(SNR), 1 / SNR + 1)  # parallel resistors: the smaller of S and 1, rounded off
    hard = MinSNR(1.0).x0(SNR)
    assert (P2().x0(SNR) < hard).all()
    assert (P2().x0(SNR) >= hard / 2).all()


def test_p2_of_gamma_one_is_a_sigmoid_over_k():
    assert_close(P2(k=3.0).eps(SNR), Sigmoid(math.log(3.0)).eps(SNR) / 3)
    assert_close(P2(gamma=0.0).eps(SNR), ConstantEps().eps(SNR))


def test_sigmoid_falls_through_one_half_at_its_bias_however_far_away():
    for bias in (-2.0, 0.0, 5.0):
        assert Sigmoid(bias).eps(torch.tensor([math.exp(bias)])).item() == pytest.approx(0.5)
    assert_close(Sigmoid(200.0).eps(SNR.float()), torch.ones(81))  # e^200 is no number of single precision


def test_edm_weight_for_data_of_another_scale_is_that_of_unit_data_at_the_scaled_ratio():
    assert_close(EDMWeight(0.5).eps(SNR), ConstantV().eps(0.25 * SNR))
    assert_close(EDMWeight(0.5).eps(SNR), 1 + 4 / SNR)


def test_uncertainty_starts_as_edms_weight_without_penalty_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    weight = LearnedUncertainty(0.7)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(weight.denoiser(SIGMA), EDMWeight(0.7).denoiser(SIGMA))
    assert not weight.penalty(SIGMA).any()
    assert all(not fixed.penalty(SIGMA).any() for fixed in FAMILY)


def weighted_mean(weight, sigma, edm_error):
    """The loss of samples whose squared error is `edm_error` under EDM's weight."""
    error = edm_error / EDMWeight(0.7).denoiser(sigma)
    return (weight.denoiser(sigma) * error + weight.penalty(sigma)).mean()


@pytest.mark.parametrize("expected", [0.01, 3.0])
def test_log_of_the_expected_weighted_error_is_stationary(expected):
    sigma, weight = SIGMA.repeat(2), LearnedUncertainty(0.7).double()
    two_sizes = torch.cat([torch.full_like(SIGMA, 0.4), torch.full_like(SIGMA, 1.6)]) * expected
    for above, slope in ((0.0, 0.0), (0.5, 1 - math.exp(-0.5))):  # d/du of e^(ln expected - u) + u
        with torch.no_grad():
            weight.level.fill_(math.log(expected) + above)
        level, slopes = torch.autograd.grad(weighted_mean(weight, sigma, two_sizes), [weight.level, weight.slopes])
        assert level.item() == pytest.approx(slope, abs=1e-12)
        assert (slopes.abs().max().item() < 1e-12) == (above == 0)


def test_uncertainty_learns_the_logarithm_of_a_loss_that_depends_on_the_noise_level():
    sigma = torch.logspace(-2.5, 2, 200, dtype=torch.float64)
    edm_error = 0.02 + sigma**2 / (1 + sigma**2)  # from 0.02 to 1
    weight = LearnedUncertainty(0.7).double()
    optimizer = torch.optim.LBFGS(weight.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = weighted_mean(weight, sigma, edm_error)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (weight.uncertainty(sigma) - edm_error.log()).abs().max() < 0.05


def test_loss_is_the_mean_of_weight_times_error_plus_penalty():
    sigma, weight = torch.tensor([0.5, 2.0]), curved()
    denoised, x_0 = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    by_hand = (weight.denoiser(sigma) * torch.tensor([2.5, 2.0]) + weight.uncertainty(sigma)).mean()
    assert_close(weighted_denoising_loss(denoised, x_0, sigma, weight), by_hand)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: EDMWeight(0.0), "weight"),
        (lambda: LearnedUncertainty(math.nan), "sigma_data"),
        (lambda: MinSNR(-5.0), "gamma"),
        (lambda: MinSNR(math.inf), "gamma"),
        (lambda: P2(k=0.0), "k of"),
        (lambda: P2(gamma=-1.0), "gamma"),
        (lambda: P2(gamma=math.inf), "gamma"),
        (lambda: Sigmoid(math.inf), "bias"),
        (lambda: Debias(snr_min=-1.0), "snr_max"),
        (lambda: Debias(10.0, 10.0), "got 10.0 and 10.0"),
        (lambda: Debias(math.nan), "snr_min"),
    ],
)
def test_impossible_weights_are_refused_in_one_line(build, match):
    with pytest.raises(ValueError, match=match) as refused:
        build()
    assert "\n" not in str(refused.value)
