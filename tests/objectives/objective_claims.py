"""What every objective claims to descend: by term of its loss, a function of the student's parameters."""

import functools
from collections.abc import Callable
from inspect import isabstract, signature
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from exact_problem import (
    SIGMA_DATA,
    UPDATE,
    Problem,
    cross_entropy,
    divergence,
    expected_square,
    fisher,
    pseudo_huber,
    quadrature,
    regression,
    weighted_fisher,
)

from fdistill.evaluation.metrics import monge_gap
from fdistill.models.denoiser import Denoiser
from fdistill.objectives import (
    DMD,
    DMD2,
    SDS,
    SIM,
    VSD,
    Adversarial,
    BregmanMatching,
    DiffInstruct,
    DiversityPreserving,
    FDistill,
    Fisher,
    MongeRegularised,
    Objective,
    RewardAugmented,
    ScoreOfMixture,
    SiD,
    SiDA,
    TiltedTeacher,
    UniInstruct,
    WarmStarted,
)
from fdistill.objectives.rewards import Reward
from fdistill.theory.divergences import (
    AlphaDivergence,
    Bregman,
    BregmanPower,
    FDivergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewedJensenShannon,
    SoftenedReverseKL,
    UniformlySkewedJensenShannon,
    WarmStart,
)
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction
from fdistill.theory.schedules import Linear

FEW, EPSILON = 9, 60.0  # latents of a Monge gap and its entropic regularisation

Descended = Callable[[Problem, torch.Tensor], torch.Tensor]


class Claim(NamedTuple):
    """An objective, and by term of its loss what the expected gradient is the derivative of."""

    objective: Objective
    terms: dict[str, Descended]


class Nearness(Reward):
    """-|x - goal|^2 / 2."""

    def __init__(self, goal: float = 0.5):
        super().__init__()
        self.goal = goal

    def forward(self, x, labels):
        return -(x - self.goal).square().flatten(1).sum(1) / 2


def a_few(nodes):
    """Some of the nodes: the gap is one number of a batch, and all of them are too many for one."""
    return nodes[:: len(nodes) // FEW][:FEW]


class OfAFew(MongeRegularised):
    """The regularised objective, with the gap of a few nodes."""

    def loss(self, at):
        def of_a_few(z, x, *how, strict):
            return monge_gap(a_few(z), a_few(x), *how)

        with mock.patch("fdistill.objectives.monge.monge_gap", of_a_few):
            return super().loss(at)


def concrete_subclasses(cls):
    """Every class of the package below cls that can be built."""
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill.") and not isabstract(sub)]


def divergences():
    """Every divergence of the package at its defaults, and some over their range."""
    classes = dict.fromkeys(concrete_subclasses(FDivergence))
    found = [cls() for cls in classes if all(p.default is not p.empty for p in signature(cls).parameters.values())]
    found += [AlphaDivergence(alpha) for alpha in (-1.0, 0.0, 1.0, 2.0)]
    found += [SkewedJensenShannon(skew) for skew in (0.0, 0.3, 1.0)]
    found += [BregmanPower(beta) for beta in (-1.5, -1.0, 0.0)]
    return [*found, WarmStart(ForwardKL(), updates=UPDATE + 1), WarmStart(ForwardKL(), updates=UPDATE)]


def step(normaliser, sigma):
    """What multiplies D_q - D_p at a noise level."""
    if normaliser == "sigma":
        return (SIGMA_DATA**-2 + sigma**-2) ** 0.5  # 1 / posterior deviation of Gaussian data
    alpha_bar = 1 / (1 + sigma**2)
    return {"uniform": 1.0, "vsd": (1 - alpha_bar) / sigma}[normaliser]


def matching(of, normaliser):
    """c sigma^2 / entries times an f-divergence."""
    return lambda at, theta: (
        step(normaliser, at.sigma) * at.sigma**2 / at.entries * divergence(at, theta, of.at(UPDATE).f)
    )


def score_identity(alpha, normaliser):
    """c sigma^4 / entries times (1 - alpha) F + (alpha - 1/2) F_sg."""

    def descended(at, theta):
        moving, still = ((1 - alpha) * fisher(at, theta), (alpha - 0.5) * fisher(at, theta, moving=False))
        return step(normaliser, at.sigma) * at.sigma**4 / at.entries * (moving + still)

    return descended


def diffused(of, normaliser):
    """c sigma^4 / entries times E_q[psi(r) |s_p - s_q|^2]."""
    return lambda at, theta: (
        step(normaliser, at.sigma) * at.sigma**4 / at.entries * weighted_fisher(at, theta, of.at(UPDATE).f)
    )


def adversarial(weight):
    return lambda at, theta: weight * divergence(at, theta, SoftenedReverseKL().f)


def f_distill():
    for of in divergences():
        yield Claim(FDistill(of, normaliser="sigma"), {"student": matching(of, "sigma")})
    for normaliser in ("uniform", "vsd"):
        both = {"student": matching(JensenShannon(), normaliser), "adversarial": adversarial(0.3)}
        yield Claim(FDistill(JensenShannon(), 0.3, normaliser), both)


def diff_instruct():
    for normaliser in ("uniform", "sigma"):
        yield Claim(DiffInstruct(normaliser), {"student": matching(ReverseKL(), normaliser)})


def vsd():
    yield Claim(VSD(), {"student": matching(ReverseKL(), "vsd")})


def sds():
    for normaliser in ("vsd", "sigma"):

        def descended(at, theta, normaliser=normaliser):
            return step(normaliser, at.sigma) * at.sigma**2 / at.entries * cross_entropy(at, theta)

        yield Claim(SDS(normaliser), {"student": descended})


def dmd():
    terms = {"student": matching(ReverseKL(), "sigma"), "regression": lambda *at: 0.25 * regression(*at)}
    yield Claim(DMD(0.25, "sigma"), terms)


def dmd2():
    weight = Linear(0.0, 0.2, 2 * UPDATE)
    terms = {"student": matching(ReverseKL(), "sigma"), "adversarial": adversarial(0.1)}
    yield Claim(DMD2(weight, "sigma"), terms)


def score_of_mixture():
    mean = UniformlySkewedJensenShannon(0.2, 0.8)
    terms = {"student": matching(mean, "sigma"), "adversarial": adversarial(0.5)}
    yield Claim(ScoreOfMixture(0.2, 0.8, 0.5, "sigma"), terms)


def bregman_matching():
    for of in divergences():
        if isinstance(of, Bregman):
            yield Claim(BregmanMatching(of, normaliser="uniform"), {"student": matching(of, "uniform")})


def sid():
    for alpha in (0.5, 1.0, 1.2):
        yield Claim(SiD(alpha, "sigma"), {"student": score_identity(alpha, "sigma")})


def fisher_objective():
    for normaliser in ("sigma", "uniform"):
        half = {"student": lambda *at, c=normaliser: diffused(ReverseKL(), c)(*at) / 2}
        yield Claim(Fisher(normaliser), half)


def sida():
    terms = {"student": score_identity(1.0, "uniform"), "adversarial": adversarial(0.01)}
    yield Claim(SiDA(0.01, normaliser="uniform"), terms)


def sim():
    for c, normaliser in ((0.3, "uniform"), (1.0, "sigma")):

        def descended(at, theta, c=c, normaliser=normaliser):
            return step(normaliser, at.sigma) * pseudo_huber(at, theta, c)

        yield Claim(SIM(c, normaliser), {"student": descended})


def uni_instruct():
    for of in divergences():
        yield Claim(UniInstruct(of, "exact"), {"student": diffused(of, "sigma")})
    of = JensenShannon()
    yield Claim(UniInstruct(of, "exact", normaliser="uniform"), {"student": diffused(of, "uniform")})
    yield Claim(UniInstruct(of, "clipped", clip=1e9), {"student": diffused(of, "sigma")})


def adversarial_alone():
    yield Claim(Adversarial(0.7), {"adversarial": adversarial(0.7)})


def reward_augmented():
    reward = {"reward": lambda at, theta: 0.3 * expected_square(at, theta, 0.5) / (2 * at.entries)}
    terms = {"student": matching(JensenShannon(), "sigma")} | reward
    yield Claim(RewardAugmented(FDistill(JensenShannon(), normaliser="sigma"), Nearness(0.5), 0.3), terms)


class Tilted:
    """p_t exp(beta r(D)), not normalised: what a tilted teacher is the score of."""

    def __init__(self, teacher, reward, beta):
        self.teacher, self.reward, self.beta = teacher, reward, beta

    def __getattr__(self, name):
        return getattr(self.teacher, name)

    def log_prob(self, x, sigma):
        denoised = Denoiser(self.teacher, X0Prediction(VarianceExploding()))(x, sigma)
        return self.teacher.log_prob(x, sigma) + self.beta * self.reward(denoised, None)


def by_tilted(descended, *how):
    """What is descended, with the tilted teacher in the place of the teacher."""
    return lambda at, theta: descended(at._replace(teacher=Tilted(at.teacher, *how)), theta)


def tilted_teacher():
    how = Nearness(0.5), 0.3
    both = {"student": by_tilted(matching(ReverseKL(), "sigma"), *how), "adversarial": adversarial(0.1)}
    yield Claim(TiltedTeacher(DMD2(0.1, "sigma"), *how), both)
    yield Claim(TiltedTeacher(SiD(0.5, "sigma"), *how), {"student": by_tilted(score_identity(0.5, "sigma"), *how)})


def entropic_gap(at, theta):
    """By Sinkhorn's plain iteration, with derivatives through all of its steps."""
    nodes = quadrature(at.student(theta.detach()), at.sigma)
    z, x = a_few(nodes.z), a_few(at._replace(theta=theta).samples(nodes))
    cost = torch.cdist(z, x).square()
    kernel, columns = (-cost / EPSILON).exp(), torch.ones(FEW, dtype=torch.float64)
    for _ in range(100):
        rows = 1 / (FEW * kernel @ columns)
        columns = 1 / (FEW * rows @ kernel)
    plan = rows[:, None] * kernel * columns
    return cost.diagonal().mean() - (plan * cost).sum() - EPSILON * (plan * plan.log()).sum()


def monge_regularised():
    gap = {"monge": lambda at, theta: 0.3 * entropic_gap(at, theta) / at.entries}
    terms = {"student": matching(ReverseKL(), "uniform")} | gap
    yield Claim(OfAFew(DiffInstruct("uniform"), 0.3, EPSILON), terms)


def diversity_preserving():
    anchored = {"student": matching(ReverseKL(), "uniform"), "anchor": lambda *at: 0.05 * regression(*at)}
    yield Claim(DiversityPreserving(DiffInstruct("uniform")), anchored)
    gone = Linear(0.1, 0.0, UPDATE)
    yield Claim(DiversityPreserving(DiffInstruct("uniform"), gone), {"student": matching(ReverseKL(), "uniform")})


def warm_started():
    early, late = DiffInstruct("sigma"), SiD(1.2, "sigma")
    yield Claim(WarmStarted(late, early, UPDATE + 1), {"student": matching(ReverseKL(), "sigma")})
    yield Claim(WarmStarted(late, early, UPDATE), {"student": score_identity(1.2, "sigma")})


CLAIMS = {
    Adversarial: adversarial_alone,
    BregmanMatching: bregman_matching,
    DMD: dmd,
    DMD2: dmd2,
    DiffInstruct: diff_instruct,
    DiversityPreserving: diversity_preserving,
    FDistill: f_distill,
    Fisher: fisher_objective,
    MongeRegularised: monge_regularised,
    RewardAugmented: reward_augmented,
    SDS: sds,
    SIM: sim,
    ScoreOfMixture: score_of_mixture,
    SiD: sid,
    SiDA: sida,
    TiltedTeacher: tilted_teacher,
    UniInstruct: uni_instruct,
    VSD: vsd,
    WarmStarted: warm_started,
}
ALL = [claim for claims in CLAIMS.values() for claim in claims()]


def label(claim):
    """Class and arguments of an objective, for the name of a test."""
    return spelled(claim.objective.spec()) if isinstance(claim, Claim) else str(claim)


def spelled(value):
    if not isinstance(value, dict):
        return str(value)
    return "-".join([value["class_path"].split(".")[-1], *map(spelled, value["init_args"].values())])


@functools.cache
def exact_samples(problem):
    """Shares of the quadrature nodes, and the noised samples there with their graph to the student's parameters."""
    nodes = quadrature(problem.student(problem.theta.detach()), problem.sigma)
    return nodes.share, problem.noised(nodes)


def only_what_is_needed(samples, needs):
    """The samples with everything removed that was not asked for, and without the graphs that were not."""
    asked = {name: getattr(needs, name) for name in ("teacher", "fake_score")}
    given = {
        name: {"nothing": None, "value": getattr(samples, name).detach()}.get(how, getattr(samples, name))
        for name, how in asked.items()
    }
    return samples._replace(
        **given,
        x_t=samples.x_t if needs.input_gradient else samples.x_t.detach(),
        log_ratio=samples.log_ratio if needs.ratio else None,
        logit=samples.logit if needs.logit else None,
        regression=samples.regression if needs.pairs else None,
        latents=samples.latents if needs.latents else None,
        first=samples.first if needs.anchor else None,
    )


def expected_gradients(objective, problem, share, samples):
    """By term, weight times its expected gradient by theta; h(r) is not divided by its mean over the nodes."""
    if isinstance(objective, ScoreOfMixture):
        return over_the_draws(functools.partial(gradients_of_loss, objective, problem, share, samples))
    return gradients_of_loss(objective, problem, share, samples)


def gradients_of_loss(objective, problem, share, samples):
    loss = objective.loss(samples)
    found = {}
    for name, term in ((name, term) for name, term in loss.terms.items() if term.weight):  # others are only logged
        mean = term.weight * (share * term.value).sum()
        (found[name],) = torch.autograd.grad(mean, problem.theta, retain_graph=True)
    if loss.sample_weight is not None:
        found["student"] = found["student"] * loss.sample_weight.mean()
    return found


def over_the_draws(gradients, nodes=10):
    """The mean over uniform draws of `torch.rand`, by Gauss and Legendre."""
    mean = {}
    for place, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        with mock.patch("torch.rand", lambda shape, place=place, **_: torch.full(shape, (place + 1) / 2).double()):
            for name, gradient in gradients().items():
                mean[name] = mean.get(name, 0) + weight / 2 * gradient
    return mean


def claimed_gradient(descended, problem):
    theta = problem.theta.detach().requires_grad_()
    return torch.autograd.grad(descended(problem, theta), theta)[0]


def assert_claim(claim, problem, within=1e-8):
    """The expected gradient of each term, given nothing but what is needed, is the derivative of its claim."""
    share, samples = exact_samples(problem)
    needed = only_what_is_needed(samples, claim.objective.at(samples.update).needs)
    found = expected_gradients(claim.objective, problem, share, needed)
    assert set(found) == set(claim.terms)
    for name, descended in claim.terms.items():
        error = relative_error(found[name], claimed_gradient(descended, problem))
        assert error < within, f"{name}: relative error {error:.1e}"


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()
