"""The estimated log ratio is the log ratio, and its two normalisations restore the identities they state."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.condition import takes_classes
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture
from fdistill.objectives import discriminator_loss
from fdistill.objectives.log_ratio import (
    ExactRatio,
    FeatureDiscriminator,
    RatioEstimator,
    SampleDiscriminator,
    unit_mean,
)
from fdistill.theory.noise_levels import KarrasUniform, LogNormal, LogUniform
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

pytestmark = pytest.mark.system  # seconds, too many for make check

TEACHER, STUDENT = GaussianMixture([[0.6, 0.0]], [0.8]), GaussianMixture([[-0.6, 0.0]], [0.8])
LEVELS = LogUniform(0.2, 2.0)


def noised(mixture, n, generator, levels=LEVELS):
    x_0 = mixture.sample(n, generator)[0]
    sigma = levels.sample(n, generator)
    return x_0 + sigma[:, None] * torch.randn(n, 2, generator=generator), sigma


def exact_log_ratio(x, sigma):
    return TEACHER.log_prob(x, sigma) - STUDENT.log_prob(x, sigma)


def estimator(discriminator=None, **arguments):
    return RatioEstimator(discriminator or SampleDiscriminator((2,)), LEVELS, sigma_data=0.8, **arguments)


def on_samples():
    return SampleDiscriminator((2,), width=48), None


def on_features_of_a_network():
    network = MLP(dim=2, width=48, depth=4).requires_grad_(False)
    return FeatureDiscriminator(network.feature_channels), Denoiser(network, EDM(0.8))


def on_the_sample_as_feature():
    return FeatureDiscriminator((2,)), Denoiser(TEACHER, X0Prediction(VarianceExploding()))


@pytest.mark.parametrize(
    ("build", "levels", "error"),
    [
        (on_samples, LEVELS, 0.1),
        # random features, so this is slow to learn
        pytest.param(on_features_of_a_network, LEVELS, 0.35, marks=pytest.mark.slow),
        # this feature does not know the noise level; ten seconds in its exact teacher
        pytest.param(on_the_sample_as_feature, LogUniform(0.49, 0.51), 0.15, marks=pytest.mark.slow),
    ],
)
def test_trained_logit_approaches_the_log_ratio_of_two_gaussians(build, levels, error):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    discriminator, denoiser = build()
    ratio = estimator(discriminator)

    def logit(x, sigma):
        return ratio.logit(None if denoiser is None else denoiser.encode(x, sigma), x, sigma, None)

    optimiser = torch.optim.Adam(ratio.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=400)
    for _ in range(400):
        fake, real = (logit(*noised(mixture, 512, generator, levels)) for mixture in (STUDENT, TEACHER))
        optimiser.zero_grad()
        discriminator_loss(fake, real).backward()
        optimiser.step()
        schedule.step()
    x, sigma = noised(STUDENT, 4000, generator, levels)
    with torch.no_grad():
        estimate, exact = logit(x, sigma), exact_log_ratio(x, sigma)
    assert (estimate - exact).square().mean().sqrt() / exact.std() < error
    assert torch.corrcoef(torch.stack([estimate, exact]))[0, 1] > 1 - error**2


def test_a_discriminator_of_equal_laws_cannot_do_better_than_two_ln_two():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    discriminator = SampleDiscriminator((2,), width=32)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    losses = []
    for _ in range(150):
        logits = [discriminator(*noised(STUDENT, 512, generator), None, 0.8) for _ in range(2)]
        loss = discriminator_loss(*logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) / 50 == pytest.approx(2 * math.log(2), abs=5e-3)


def test_logits_of_a_class_conditional_discriminator_depend_on_the_class():
    torch.manual_seed(0)
    discriminator = SampleDiscriminator((1, 4, 4), takes_classes(3))
    x, sigma = torch.randn(1, 1, 4, 4).expand(4, 1, 4, 4), torch.ones(4)
    logits = discriminator(x, sigma, torch.arange(4), 0.5)
    assert logits.shape == (4,)
    assert len(logits.unique()) == 4


def test_feature_logit_is_the_sum_over_taps_of_any_rank():
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator((4, 6), width=8).double()
    taps = [torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)]
    logits = discriminator(taps)
    alone = sum(head(tap) for head, tap in zip(discriminator.heads, taps, strict=True))
    assert logits.shape == (3,)
    assert_close(logits, alone)


def test_stage_one_restores_unit_mean_of_the_ratio_in_every_noise_bin():
    generator = torch.Generator().manual_seed(0)
    ratio, bins = estimator(num_bins=5, decay=0.98), 5
    offset = torch.tensor([0.7, -0.5, 0.3, 0.0, -0.9])  # a discriminator that is wrong by a constant in each bin

    def corrected(n):
        x, sigma = noised(STUDENT, n, generator)
        which = ratio.bin_of(sigma)
        return which, ratio.log_ratio(exact_log_ratio(x, sigma) + offset[which], sigma)

    for _ in range(300):
        corrected(1000)
    which, log_ratio = corrected(100_000)
    means = torch.stack([log_ratio[which == i].exp().mean() for i in range(bins)])
    assert_close(means, torch.ones(bins), rtol=0, atol=0.05)


def test_stage_one_is_blind_to_a_constant_error_of_the_logit():
    generator = torch.Generator().manual_seed(0)
    plain, shifted = (estimator(num_bins=4, clip=(1e-12, 1e12)) for _ in range(2))
    for _ in range(1200):  # the start at ratio one is forgotten as decay^n
        x, sigma = noised(STUDENT, 64, generator)
        logit = exact_log_ratio(x, sigma)
        here, there = plain.log_ratio(logit, sigma), shifted.log_ratio(logit + 3.0, sigma)
    assert_close(there, here, rtol=0, atol=1e-3)


def test_stage_one_divides_a_constant_ratio_away():
    ratio, sigma = estimator(decay=0.9), LEVELS.sample(500, torch.Generator().manual_seed(0))
    for _ in range(200):
        log_ratio = ratio.log_ratio(torch.full((500,), math.log(7.0)), sigma)
    assert_close(log_ratio, torch.zeros(500), rtol=0, atol=1e-4)


def test_stage_one_starts_from_ratio_one():
    fresh = estimator()
    assert_close(fresh.ratio_sum / fresh.count, torch.ones(10))
    logit = torch.tensor([0.5])
    once = fresh.log_ratio(logit, torch.tensor([0.5]))  # one sample moves the mean by one part in 100
    assert 0.49 < once.item() < 0.5


def test_a_bin_is_not_touched_by_the_ratios_of_the_others():
    ratio, generator = estimator(num_bins=4, decay=0.5), torch.Generator().manual_seed(0)
    _, sigma = noised(STUDENT, 2000, generator)
    lowest = ratio.bin_of(sigma) == 0
    other = ratio.bin_of(sigma) != 0
    ratio.log_ratio(torch.zeros(int(lowest.sum())), sigma[lowest])
    for _ in range(40):
        ratio.log_ratio(torch.full((int(other.sum()),), 2.0), sigma[other])
    mean = ratio.ratio_sum / ratio.count
    assert_close(mean, torch.tensor([1.0, math.exp(2), math.exp(2), math.exp(2)]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("law", [LogNormal(), LogUniform(), KarrasUniform()], ids=lambda law: type(law).__name__)
def test_bins_hold_equal_mass_of_the_sampled_noise(law):
    ratio = RatioEstimator(SampleDiscriminator((2,)), law, 0.5, num_bins=10)
    counts = torch.bincount(ratio.bin_of(law.sample(50_000, torch.Generator().manual_seed(0))), minlength=10)
    assert (counts - 5000).abs().max() < 5 * math.sqrt(50_000 * 0.1 * 0.9)


def test_bins_are_ordered_in_noise_and_hold_every_level():
    ratio = estimator(num_bins=7)
    bins = ratio.bin_of(torch.tensor([1e-9, 0.2, 0.6, 2.0, 1e9]))
    assert (bins.diff() >= 0).all()
    assert bins[[0, -1]].tolist() == [0, 6]


def test_ratios_are_clipped_before_stage_one_and_the_share_is_reported():
    ratio = estimator(clip=(0.1, 20.0))
    logit = torch.tensor([-50.0, math.log(0.1) + 1e-4, 0.0, math.log(20) - 1e-4, 50.0, 3.5, -2.0, 1.0])
    assert ratio.clipped_fraction(logit).item() == pytest.approx(3 / 8)
    log_ratio = ratio.log_ratio(logit, torch.full((8,), 0.5))
    assert_close(log_ratio.max() - log_ratio.min(), torch.tensor(math.log(200.0)))
    assert_close(log_ratio[4], log_ratio[5])


def test_the_exact_ratio_is_the_difference_of_log_densities_and_its_gradient_that_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    x, sigma = (value.double() for value in noised(STUDENT, 50, generator))
    x.requires_grad_()
    logit = estimator(ExactRatio(TEACHER, STUDENT)).logit(None, x, sigma, None)
    assert logit.dtype == torch.float64
    assert torch.equal(logit, TEACHER.log_prob(x, sigma) - STUDENT.log_prob(x, sigma))
    (gradient,) = torch.autograd.grad(logit.sum(), x)
    scores = [Denoiser(law, X0Prediction(VarianceExploding())).score(x, sigma) for law in (TEACHER, STUDENT)]
    assert_close(gradient, scores[0] - scores[1])


def test_laws_of_different_dimension_have_no_ratio():
    with pytest.raises(ValueError, match="shapes"):
        ExactRatio(TEACHER, GaussianMixture([[0.0]], [1.0]))


def test_a_clip_range_from_zero_to_infinity_clips_nothing():
    ratio, logit = estimator(clip=(0.0, math.inf)), torch.tensor([-500.0, -3.0, 0.0, 80.0])
    assert ratio.clipped_fraction(logit).item() == 0
    assert_close(ratio.centred(logit, torch.full((4,), 0.5)), logit)


@pytest.mark.parametrize("clip", [(-1.0, 20.0), (2.0, 2.0), (0.0, math.nan)])
def test_clip_ranges_that_are_none_are_refused(clip):
    with pytest.raises(ValueError, match="high"):
        estimator(clip=clip)


def test_centring_samples_of_another_law_teaches_stage_one_nothing():
    ratio, (x, sigma) = estimator(), noised(STUDENT, 300, torch.Generator().manual_seed(0))
    log_ratio = ratio.log_ratio(exact_log_ratio(x, sigma), sigma)
    before = ratio.ratio_sum.clone(), ratio.count.clone()
    assert torch.equal(ratio.centred(exact_log_ratio(x, sigma), sigma), log_ratio)
    assert torch.equal(ratio.ratio_sum, before[0])
    assert torch.equal(ratio.count, before[1])


def test_log_ratio_is_float32_without_gradient_for_logits_of_any_precision():
    for dtype in (torch.bfloat16, torch.float64):
        log_ratio = estimator().log_ratio(torch.zeros(3, dtype=dtype, requires_grad=True), torch.ones(3))
        assert log_ratio.dtype == torch.float32
        assert not log_ratio.requires_grad


def test_logit_keeps_the_gradient_that_the_adversarial_term_needs():
    x = torch.randn(3, 2, requires_grad=True)
    estimator().logit(None, x, torch.ones(3), None).sum().backward()
    assert x.grad.any()


def test_state_is_the_discriminator_and_two_buffers_and_comes_back():
    ratio = estimator()
    own = {key for key in ratio.state_dict() if not key.startswith("discriminator.")}
    assert own == {"ratio_sum", "count"} == {key for key, _ in ratio.named_buffers() if "." not in key}
    assert all(key.startswith("discriminator.") for key, _ in ratio.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x, sigma = noised(STUDENT, 100, generator)
        ratio.log_ratio(exact_log_ratio(x, sigma), sigma)
    again = estimator()
    again.load_state_dict(ratio.state_dict())
    x, sigma = noised(STUDENT, 100, generator)
    logits = ratio.logit(None, x, sigma, None)
    assert torch.equal(again.logit(None, x, sigma, None), logits)
    assert torch.equal(again.log_ratio(logits, sigma), ratio.log_ratio(logits, sigma))


def test_stage_two_weights_have_unit_mean_and_keep_their_proportions():
    weight = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    normalised = unit_mean(weight)
    assert_close(normalised.mean().item(), 1.0)
    assert_close(normalised / normalised[0], weight / weight[0])
    assert_close(unit_mean(1e6 * weight), normalised)
