"""Teachers and students whose noised laws are known in closed form, with expectations over them by quadrature."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.objectives import NoisedSamples, Regression
from fdistill.objectives.base import inner
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

SIGMA_DATA = 0.8
UPDATE = 2500  # of the student: in the middle of every schedule used here
REGRESSION = 0.4  # the "ODE" of the teacher takes the latent z to the sample REGRESSION z


class Law(NamedTuple):
    """x = means[k] + factors[k] z with probability shares[k], z ~ N(0, I); a student as a function of its latents."""

    means: torch.Tensor  # [K, d]
    factors: torch.Tensor  # [K, d, d]
    shares: torch.Tensor  # [K]

    def covariances(self, sigma):
        return self.factors @ self.factors.mT + sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)

    def log_joint(self, x, sigma):
        """ln of share and noised density of each component at x [B, d]; [B, K]."""
        root = torch.linalg.cholesky(self.covariances(sigma))
        white = torch.einsum("kij,bkj->bki", torch.linalg.inv(root), x[:, None] - self.means)
        log_volume = root.diagonal(dim1=1, dim2=2).log().sum(1) + x.shape[1] / 2 * math.log(2 * math.pi)
        return self.shares.log() - white.square().sum(2) / 2 - log_volume

    def log_prob(self, x, sigma):
        return self.log_joint(x, sigma).logsumexp(1)

    def denoised(self, x, sigma):
        """E[x_0 | x_t = x], [B, d]."""
        gain = self.factors @ self.factors.mT @ torch.linalg.inv(self.covariances(sigma))
        posterior = self.means + torch.einsum("kij,bkj->bki", gain, x[:, None] - self.means)
        return (self.log_joint(x, sigma).softmax(1)[..., None] * posterior).sum(1)


def affine(theta):
    """x = m + A z, theta = (m, A row by row)."""
    d = 1 if len(theta) == 2 else 2
    return Law(theta[None, :d], theta[d:].reshape(1, d, d), torch.ones(1, dtype=torch.float64))


def two_armed(theta):
    """A fair coin beside z: x = a + coin tanh(b) + 0.6 exp(coin c) z, in one dimension."""
    a, b, c = theta
    means = torch.stack([a - b.tanh(), a + b.tanh()])
    return Law(means[:, None], 0.6 * torch.stack([(-c).exp(), c.exp()])[:, None, None], torch.full((2,), 0.5).double())


def crossed(theta):
    """The same in two dimensions, with the arms turned against each other: theta = (a, a', b, angle, stretch)."""
    arms = []
    for coin in (-1, 1):
        c, s = (coin * theta[3]).cos(), (coin * theta[3]).sin()
        turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        arms.append(0.55 * turn * torch.stack([theta[4].exp(), (-theta[4]).exp()]))
    apart = theta[2] * torch.tensor([1.0, -0.5], dtype=torch.float64)
    return Law(torch.stack([theta[:2] - apart, theta[:2] + apart]), torch.stack(arms), torch.full((2,), 0.5).double())


def bent(theta):
    """x = a + b z + c sin 2z of one normal latent, in one dimension: z is a lattice of 29 atoms, so q_t is a sum."""
    z = torch.linspace(-5.6, 5.6, 29, dtype=torch.float64)
    shares = (-z.square() / 2).exp()
    x = theta[0] + theta[1] * z + theta[2] * (2 * z).sin()
    return Law(x[:, None], torch.zeros(29, 1, 1, dtype=torch.float64), shares / shares.sum())


def lattice(d, reach, step):
    """Points [N, d] of a cubic lattice, where trapezoidal sums of analytic functions converge exponentially."""
    axis = torch.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1, dtype=torch.float64) * step
    return torch.cartesian_prod(*[axis] * d).reshape(-1, d)


def normal_lattice(d, reach, step):
    """The same with the shares of a standard normal, [N, d] and [N]."""
    points = lattice(d, reach, step)
    shares = (-points.square().sum(1) / 2).exp()
    return points, shares / shares.sum()


class Quadrature(NamedTuple):
    """Latents and noise of all components one below the other, with their shares of the expectation."""

    component: torch.Tensor  # [B]
    z: torch.Tensor  # [B, d]
    eps: torch.Tensor  # [B, d]
    share: torch.Tensor  # [B]


def quadrature(law, sigma, reach=9.5, step=None):
    """Nodes (z, eps) for functions of x_t, and of z given x_t up to the third degree.

    (z, eps) is turned so that x_t depends on the first half of the coordinates, a lattice; along the other half 2 nodes
    of Gauss and Hermite suffice, since a gradient is quadratic in z at given x_t.
    """
    d = law.means.shape[1]
    a, share_a = normal_lattice(d, reach, step or (0.15 if d == 1 else 0.3))
    b = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * d).reshape(-1, d)
    parts = []
    for k in range(len(law.shares)):
        both = torch.cat([law.factors[k], sigma * torch.eye(d, dtype=torch.float64)], dim=1)
        seen = torch.linalg.inv(torch.linalg.cholesky(both @ both.T)) @ both
        unseen = torch.linalg.svd(seen).Vh[d:]
        turned = (a @ seen)[:, None] + (b @ unseen)[None]
        z, eps = turned.reshape(-1, 2 * d).split(d, dim=1)
        share = (law.shares[k] * share_a[:, None] / len(b)).expand(-1, len(b)).flatten()
        parts.append((torch.full_like(share, k).long(), z, eps, share))
    return Quadrature(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Problem(NamedTuple):
    """A teacher, a student at theta, and one noise level."""

    teacher: GaussianMixture
    student: Callable[[torch.Tensor], Law]
    theta: torch.Tensor  # a leaf with gradient
    sigma: float

    @property
    def entries(self):
        return self.teacher.sample_shape[0]

    def levels(self, x):
        return torch.full((len(x),), self.sigma, dtype=torch.float64)

    def log_teacher(self, x):
        return self.teacher.log_prob(x, self.levels(x))

    def samples(self, nodes):
        """x_0 of the student at quadrature nodes, [B, d], as a function of theta."""
        law = self.student(self.theta)
        return law.means[nodes.component] + (law.factors[nodes.component] @ nodes.z[..., None])[..., 0]

    def noised(self, nodes):
        """Everything an objective may ask for, from the exact scores and ratio of the student as it is now."""
        exact = self.student(self.theta.detach())
        x = self.samples(nodes)
        x_t = x + self.sigma * nodes.eps
        logit = self.log_teacher(x_t) - exact.log_prob(x_t, self.sigma)
        return NoisedSamples(
            x=x,
            x_t=x_t,
            sigma=self.levels(x),
            sigma_data=SIGMA_DATA,
            teacher=Denoiser(self.teacher, X0Prediction(VarianceExploding()))(x_t, self.levels(x)),
            fake_score=exact.denoised(x_t, self.sigma),
            log_ratio=logit.detach(),
            logit=logit,
            regression=Regression(x, REGRESSION * nodes.z),
            first=Regression(x, REGRESSION * nodes.z),
            update=UPDATE,
            generator=torch.Generator().manual_seed(0),
            latents=nodes.z,
        )

    def axis(self):
        """Points x_t [N, d] that reach far beyond teacher and student, and their volumes."""
        law = self.student(self.theta.detach())
        spread = torch.cat([self.teacher.variances, (law.factors @ law.factors.mT).diagonal(dim1=1, dim2=2).flatten()])
        narrow, wide = ((extreme + self.sigma**2).sqrt().item() for extreme in (spread.min(), spread.max()))
        centres = torch.cat([self.teacher.means, law.means])
        step = narrow / (16 if self.entries == 1 else 3)
        reach = 9.5 * wide + (centres - centres.mean(0)).abs().max().item()
        x = centres.mean(0) + lattice(self.entries, reach, step)
        log_p, log_q = self.log_teacher(x), law.log_prob(x, self.sigma)
        matters = torch.maximum(2 * log_p - log_q, 2 * log_q - log_p) > -36  # p^2/q and q^2/p are the widest integrands
        return x[matters], step**self.entries


TEACHER_1D = GaussianMixture([[-0.9], [0.8]], [0.5, 0.6], [0.35, 0.65])
TEACHER_2D = GaussianMixture([[-0.8, 0.3], [0.7, -0.2]], [0.55, 0.6], [0.4, 0.6])
# Neyman's divergence is finite where var q_t < 2 var p_t in every direction, and Pearson's where var p_t < 2 var q_t
STUDENTS_1D = {
    "affine": (affine, [0.25, 0.65]),
    "two-armed": (two_armed, [-0.15, 0.5, 0.1]),
    "bent": (bent, [0.2, 0.55, 0.15]),
}
STUDENTS_2D = {
    "affine": (affine, [0.2, -0.1, 0.6, 0.15, -0.1, 0.55]),
    "crossed": (crossed, [0.1, 0.2, 0.5, 0.4, 0.1]),
}
LEVELS_1D = {"affine": (0.1, 0.5, 2.0), "two-armed": (0.4,), "bent": (0.8,)}
LEVELS_2D = {"affine": (0.3,), "crossed": (1.0,)}


def problem(teacher, student, theta, sigma):
    return Problem(teacher, student, torch.tensor(theta, dtype=torch.float64, requires_grad=True), sigma)


@functools.cache
def problem_1d(student, sigma):
    return problem(TEACHER_1D, *STUDENTS_1D[student], sigma)


@functools.cache
def problem_2d(student, sigma):
    return problem(TEACHER_2D, *STUDENTS_2D[student], sigma)


def score(log_density, x):
    """Gradient of a log density by autograd, [N, d], itself differentiable."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x, create_graph=True)[0]


def score_difference(problem, theta, x):
    """s_p - s_q at x, [N, d], as a function of theta."""
    law = problem.student(theta)
    return score(problem.log_teacher, x) - score(lambda x: law.log_prob(x, problem.sigma), x)


def divergence(problem, theta, f):
    """D_f(p_t||q_t) = E_q[f(r)]."""
    x, volume = problem.axis()
    log_q = problem.student(theta).log_prob(x, problem.sigma)
    return volume * (log_q.exp() * f((problem.log_teacher(x) - log_q).exp())).sum()


def cross_entropy(problem, theta):
    """E_q[-ln p_t]."""
    x, volume = problem.axis()
    return -volume * (problem.student(theta).log_prob(x, problem.sigma).exp() * problem.log_teacher(x)).sum()


def fisher(problem, theta, moving=True):
    """E_q |s_p - s_q|^2; with samples that do not move, q outside the square is that of today."""
    x, volume = problem.axis()
    q = problem.student(theta if moving else theta.detach()).log_prob(x, problem.sigma).exp()
    difference = score_difference(problem, theta, x)
    return volume * (q * inner(difference, difference)).sum()


def pseudo_huber(problem, theta, c):
    """E_sg[sqrt(|D_q - D_p|^2 / entries + c^2)] over samples that do not move."""
    x, volume = problem.axis()
    q = problem.student(theta.detach()).log_prob(x, problem.sigma).exp()
    y = problem.sigma**2 * score_difference(problem, theta, x)
    return volume * (q * (inner(y, y) / problem.entries + c**2).sqrt()).sum()


def weighted_fisher(problem, theta, f):
    """E_q[psi(r) |s_p - s_q|^2] with psi = r^2 f''(r), from f alone."""
    x, volume = problem.axis()
    log_q = problem.student(theta).log_prob(x, problem.sigma)
    r = (problem.log_teacher(x) - log_q).exp()
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r, create_graph=True)
    difference = score_difference(problem, theta, x)
    return volume * (log_q.exp() * r.square() * second * inner(difference, difference)).sum()


def regression(problem, theta):
    """Mean square over entries and latents of x - REGRESSION z, in closed form."""
    law = problem.student(theta)
    wanted = REGRESSION * torch.eye(problem.entries, dtype=torch.float64)
    error = law.means.square().sum(1) + (law.factors - wanted).square().sum((1, 2))
    return (law.shares * error).sum() / problem.entries


def expected_square(problem, theta, goal):
    """E |x - goal|^2 over clean samples of the student, in closed form."""
    law = problem.student(theta)
    return (law.shares * ((law.means - goal).square().sum(1) + law.factors.square().sum((1, 2)))).sum()
