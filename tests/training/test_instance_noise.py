"""Noise beside sigma that only the discriminator sees: one law for both sides, and the ratio that it leads to."""

import functools

import pytest
import torch
from objective_runs import Asking, learning_by
from test_objectives_in_turns import Losses
from test_pairs_and_penalty import LinearLogit, with_linear_logit
from tiny_runs import GivenData, Recorded, distillation, fit, mlp, moved, ring, weights
from torch import nn
from torch.nn import functional as F

from fdistill.evaluation.ratio_calibration import reliability
from fdistill.models.networks import GaussianMixture
from fdistill.objectives import Adversarial, DiffInstruct, FDistill, SiDA
from fdistill.objectives.log_ratio import ExactRatio
from fdistill.theory.divergences import JensenShannon, ReverseKL
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.schedules import Linear, Steps
from fdistill.training.discrimination import NoisedInput

TAU = 0.8


class Witness(nn.Module):
    """In the place of a sample discriminator: writes down what it sees."""

    def __init__(self):
        super().__init__()
        self.slope, self.seen = nn.Parameter(torch.tensor([0.3, -0.2])), []

    def forward(self, x, sigma, labels, sigma_data):
        self.seen.append((x.detach(), sigma))
        return torch.tanh(x @ self.slope) / sigma


def witnessed(objective=None, **changes):
    module = learning_by(
        objective or Adversarial(), **{"discriminator": "sample", "fake_updates_per_student": 1} | changes
    )
    module.ratio.discriminator = Witness()
    return module


def first_batch(data):
    return next(iter(data.train_dataloader()))


def test_without_it_samples_are_as_they_are_and_nothing_is_drawn():
    generator = torch.Generator().manual_seed(0)
    before, x, sigma = generator.get_state(), torch.randn(4, 2), torch.ones(4)
    seen = NoisedInput(x, sigma, None).with_instance_noise(0.0, generator)
    assert seen.x_t is x
    assert seen.sigma is sigma
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("discriminator", ["teacher", "fake_score", "sample"])
def test_a_run_is_what_it_is_without_until_the_schedule_rises(discriminator, turn):
    ends = []
    for noise, turns in ((0.0, 2), (Steps([0.0, TAU], [1]), 2), (0.0, 3), (Steps([0.0, TAU], [1]), 3)):
        module = learning_by(
            SiDA(0.3), discriminator=discriminator, turn=turn, fake_updates_per_student=1, instance_noise=noise
        )
        fit(module, turns if turn == "alternating" else turns - 1)
        ends.append(weights(module))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not all(torch.equal(value, ends[3][name]) for name, value in ends[2].items())


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_real_and_generated_samples_get_it_by_one_law(turn):
    n = 20_000
    data = GivenData(torch.randn(n, 2, generator=torch.Generator().manual_seed(5)), batch_size=n)
    module, batch = witnessed(turn=turn, instance_noise=TAU), first_batch(data)
    generated = module._generate(batch, next(module.micro_batches(n)), turn == "fused")
    level = (generated.sigma.square() + TAU**2).sqrt()
    fit(module, 1, data)
    fake, real = module.ratio.discriminator.seen[-2:] if turn == "fused" else module.ratio.discriminator.seen
    for (x_t, seen), x in ((fake, generated.x), (real, batch.x)):
        torch.testing.assert_close(seen, level)
        residual = ((x_t - x) / level[:, None]).detach().double()
        standard_error = (2 * n) ** -0.5
        assert abs(residual.mean()) < 4 * standard_error
        assert abs(residual.square().mean() - 1) < 4 * 2**0.5 * standard_error
    assert not torch.equal(fake[0] - generated.x, real[0] - batch.x)


def test_the_optimal_logit_is_the_log_ratio_of_the_laws_at_the_noisier_level():
    n, generator = 40_000, torch.Generator().manual_seed(0)
    p = GaussianMixture([[-0.6], [0.7]], [0.3, 0.2], [0.4, 0.6])
    q = GaussianMixture([[0.1]], [0.5])
    ratio, sigma = ExactRatio(p, q), torch.full((n,), 0.3, dtype=torch.float64)
    spots = torch.where(
        torch.rand(n, 1, generator=generator) < 0.4, torch.tensor([-0.6, 0.3]), torch.tensor([0.7, 0.2])
    )
    real = spots[:, :1] + spots[:, 1:] * torch.randn(n, 1, generator=generator)
    fake = 0.1 + 0.5 * torch.randn(n, 1, generator=generator)
    sides = []
    for x in (fake, real):
        x_t = (x + sigma[:, None] * torch.randn(n, 1, generator=generator)).float()
        sides.append(NoisedInput(x_t, sigma.float(), None).with_instance_noise(TAU, generator))
    right = reliability(*(ratio(seen.x_t, seen.sigma) for seen in sides))
    for estimate, truth in ((right.slope, 1), (right.offset, 0), (right.mean_ratio, 1)):
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert right.slope.standard_error < 0.1
    wrong = reliability(*(ratio(seen.x_t, sigma.float()) for seen in sides))
    assert abs(wrong.slope.value - 1) > 10 * wrong.slope.standard_error


@pytest.mark.parametrize("discriminator", ["teacher", "fake_score", "sample"])
def test_the_student_descends_what_the_discriminator_says_of_the_noisier_sample(discriminator):
    still = functools.partial(Recorded, lr=0.0)
    module = learning_by(
        Adversarial(0.7),
        discriminator=discriminator,
        fake_score=mlp(seed=2) if discriminator == "fake_score" else None,
        instance_noise=TAU,
        gradient_clip=1e9,
        student_optimizer=Recorded,
        fake_score_optimizer=still,
    )
    data, part = ring(), next(module.micro_batches(32))
    generated = module._generate(first_batch(data), part, True)
    x_t = generated.x + (generated.x_t - generated.x).detach() + TAU * torch.randn(32, 2, generator=part.own)
    level = (generated.sigma.square() + TAU**2).sqrt()
    loss = 0.7 * F.softplus(-module.logit(x_t, level, None)).mean()
    expected, before = torch.autograd.grad(loss, list(module.student.parameters())), weights(module)
    fit(module, 1, data)
    for (name, now), truth in zip(module.student.named_parameters(), expected, strict=True):
        torch.testing.assert_close(before[f"student.{name}"] - now.detach(), truth, rtol=1e-4, atol=1e-6)


def test_the_matching_stays_at_sigma_and_is_weighed_by_the_ratio_at_the_noisier_level():
    both = [FDistill(JensenShannon(), normaliser="sigma") for _ in range(2)]
    noisy, plain = map(Asking, both)
    modules = [
        witnessed(objective, instance_noise=tau, ratio_bins=1, ratio_decay=0.0, fake_score=mlp(seed=2))
        for objective, tau in zip(both, (TAU, 0.0), strict=True)
    ]
    for module in modules:
        module.ratio.log_clip = (-20.0, 20.0)
        fit(module, 1)
    at, other = noisy.seen[0], plain.seen[0]
    for name in ("x", "x_t", "sigma", "teacher", "fake_score"):
        assert torch.equal(getattr(at, name), getattr(other, name)), name
    x_t, level = modules[0].ratio.discriminator.seen[0]
    logit = torch.tanh(x_t @ torch.tensor([0.3, -0.2])) / level
    torch.testing.assert_close(at.log_ratio, logit - logit.exp().mean().log())
    torch.testing.assert_close(level, (at.sigma.square() + TAU**2).sqrt())
    assert not torch.equal(at.log_ratio, other.log_ratio)


def test_a_schedule_counts_updates_of_the_student():
    module = witnessed(
        turn="alternating", noise_levels=LogNormal(-12.0, 0.1), instance_noise=Steps([1.0, 0.5, 0.0], [1, 2])
    )
    fit(module, 6)  # fake side, student, fake side, ...
    level = [round(float(sigma.max()), 3) for _, sigma in module.ratio.discriminator.seen]
    assert level == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_the_penalty_is_taken_at_what_the_discriminator_sees(turn):
    module, losses = with_linear_logit(turn, r1_weight=0.6, instance_noise=TAU), Losses()
    sigma = module._generate(first_batch(ring()), next(module.micro_batches(32)), turn == "fused").sigma
    slope = LinearLogit().w.detach()
    fit(module, 1, logger=losses, log_every_n_steps=1)
    scale = (sigma.square() + TAU**2 + 1).mean()  # sigma_data is 1
    assert losses.values["loss/r1", 0] == pytest.approx(float(0.3 * scale * slope.square().sum()), rel=1e-5)


@pytest.mark.parametrize("discriminator", ["teacher", "fake_score", "sample"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_all_networks_learn_under_it(discriminator, precision):
    module = distillation(
        mlp(num_classes=2),
        FDistill(JensenShannon(), 0.3),
        student=mlp(num_classes=2, seed=1),
        discriminator=discriminator,
        guidance=1.5,
        instance_noise=Linear(1.0, 0.0, 10),
    )
    before = weights(module)
    fit(module, 2, precision=precision)
    assert all(moved(before, module, part) for part in ("student", "fake_score", "ratio.discriminator"))
    assert not moved(before, module, "teacher")


@pytest.mark.parametrize(
    ("objective", "noise", "message"),
    [
        (DiffInstruct(), 0.5, "DiffInstruct"),
        (FDistill(ReverseKL()), Linear(1.0, 0.0, 10), "FDistill"),
        (Adversarial(), -0.1, "instance_noise"),
        (Adversarial(), float("inf"), "instance_noise"),
    ],
)
def test_noise_that_nobody_sees_or_can_draw_is_refused(objective, noise, message):
    with pytest.raises(ValueError, match=message):
        distillation(objective=objective, instance_noise=noise)


def test_a_schedule_that_becomes_negative_is_refused_where_it_does():
    module = witnessed(instance_noise=Steps([0.5, -0.5], [2]))
    with pytest.raises(ValueError, match="instance_noise"):
        fit(module, 4)
    assert module.updates == 2
