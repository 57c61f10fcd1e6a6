"""Uni-Instruct: the divergence of clean samples from diffused Fisher divergences; which terms its gradient needs."""

import math

import numpy as np
import pytest
import torch
from exact_problem import divergence, problem_1d, problem_2d, weighted_fisher
from objective_claims import (
    Claim,
    assert_claim,
    claimed_gradient,
    diffused,
    exact_samples,
    expected_gradients,
    relative_error,
)

from fdistill.objectives import Fisher, SiD, UniInstruct
from fdistill.objectives.base import inner
from fdistill.theory.divergences import (
    ForwardKL,
    JensenShannon,
    NeymanChiSquared,
    PearsonChiSquared,
    ReverseKL,
    SquaredHellinger,
)

PROBLEMS = [problem_1d("affine", 0.5), problem_2d("affine", 0.5)]


@pytest.mark.parametrize("of", [ReverseKL(), JensenShannon(), ForwardKL(), SquaredHellinger(), PearsonChiSquared()])
def test_divergence_is_the_integral_of_the_diffused_fisher_divergences(of):
    # D_f(p_a||q_a) - D_f(p_b||q_b) = int_a^b sigma E_q[psi |s_p - s_q|^2] dsigma
    low, high = 0.1, 3.0
    problem = problem_1d("affine", 0.5)
    places, weights = np.polynomial.legendre.leggauss(30)
    levels = np.exp(np.log(low) + (places + 1) / 2 * np.log(high / low))
    integrand = [s**2 * weighted_fisher(problem._replace(sigma=float(s)), problem.theta, of.f).item() for s in levels]
    integral = np.dot(weights, integrand) / 2 * math.log(high / low)
    ends = [divergence(problem._replace(sigma=sigma), problem.theta, of.f).item() for sigma in (low, high)]
    assert integral == pytest.approx(ends[0] - ends[1], rel=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
@pytest.mark.parametrize("of", [JensenShannon(), NeymanChiSquared(), SquaredHellinger()])
def test_gradient_is_wrong_without_any_of_its_four_terms(problem, of):
    share, samples = exact_samples(problem)
    claim = claimed_gradient(diffused(of, "uniform"), problem)
    found = expected_gradients(UniInstruct(of, "exact", normaliser="uniform"), problem, share, samples)["student"]
    delta, u = samples.teacher - samples.fake_score, samples.fake_score - samples.x
    weight, first, second = of.weight_slopes(samples.log_ratio)
    drawn = inner(delta.detach(), samples.x_t) / problem.sigma**2
    terms = [
        2 * weight * inner(delta, u),
        2 * first * inner(delta, u).detach() * drawn,  # the released code leaves this one out
        (weight - first) * inner(delta, delta),
        -second * inner(delta, delta).detach() * drawn,
    ]
    assert relative_error(found, claim) < 1e-8
    for term in terms:
        (part,) = torch.autograd.grad((share * term).sum() / problem.entries, problem.theta, retain_graph=True)
        assert relative_error(found - part, claim) > 0.01


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
def test_reverse_kl_is_twice_the_fisher_divergence_and_knows_no_ratio(problem):
    share, samples = exact_samples(problem)
    once, twice = (
        expected_gradients(objective, problem, share, samples._replace(log_ratio=None))["student"]
        for objective in (Fisher("sigma"), UniInstruct(ReverseKL(), normaliser="sigma"))
    )
    torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)


def test_fisher_is_score_identity_distillation_at_one_half():
    _, samples = exact_samples(PROBLEMS[1])
    values = [objective.loss(samples).terms["student"].value for objective in (Fisher("sigma"), SiD(0.5, "sigma"))]
    assert torch.equal(*values)


def coefficients(objective, samples):
    """sigma^2 times the bracket over the mean weight, [B]: the pull on x_t alone, the networks held still."""
    x_t = samples.x_t.detach().requires_grad_()
    delta = (samples.teacher - samples.fake_score).detach()
    still = {name: getattr(samples, name).detach() for name in ("x", "teacher", "fake_score")}
    value = objective.loss(samples._replace(x_t=x_t, **still)).terms["student"].value
    (pull,) = torch.autograd.grad(value.sum(), x_t)
    return (inner(pull, delta) / inner(delta, delta) * delta.shape[1]).detach()


def drawn_samples(factor):
    """One batch as training would see it, its teacher's and student's denoised samples further apart by a factor."""
    g = torch.Generator().manual_seed(0)
    x, eps, d_p, d_q = (torch.randn(64, 3, dtype=torch.float64, generator=g) for _ in range(4))
    _, samples = exact_samples(PROBLEMS[0])
    return samples._replace(
        x=x,
        x_t=x + eps,
        sigma=torch.ones(64, dtype=torch.float64),
        teacher=x + factor * d_p,
        fake_score=x + factor * d_q,
        log_ratio=torch.randn(64, dtype=torch.float64, generator=g),
    )


@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_clipped_coefficient_is_the_exact_one_brought_into_the_range(clip):
    samples = drawn_samples(1.0)
    exact = coefficients(UniInstruct(JensenShannon(), "exact", normaliser="uniform"), samples)
    clipped = coefficients(UniInstruct(JensenShannon(), "clipped", clip, "uniform"), samples)
    assert exact.abs().min() < clip < exact.abs().max()
    torch.testing.assert_close(clipped, exact.clamp(-clip, clip))


@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e2])
def test_normalised_coefficient_has_the_same_root_mean_square_at_every_distance_of_teacher_and_student(factor):
    samples = drawn_samples(factor)
    exact = coefficients(UniInstruct(JensenShannon(), "exact", normaliser="uniform"), samples)
    normalised = coefficients(UniInstruct(JensenShannon(), "normalised", 0.7, "uniform"), samples)
    assert normalised.square().mean().sqrt().item() == pytest.approx(0.7)
    torch.testing.assert_close(normalised / exact, (normalised / exact)[:1].expand(64))


@pytest.mark.parametrize("problem", PROBLEMS, ids=["1-D", "2-D"])
def test_clip_that_nothing_reaches_leaves_the_gradient_exact(problem):
    for of in (JensenShannon(), PearsonChiSquared()):
        assert_claim(Claim(UniInstruct(of, "clipped", 1e9, "uniform"), {"student": diffused(of, "uniform")}), problem)
