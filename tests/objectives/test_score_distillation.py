"""SDS is VSD of one point; it descends to a mode where VSD keeps the teacher's variance. Any generator, in float64."""

import pytest
import torch
from exact_problem import Law, problem, quadrature
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture, Generator
from fdistill.objectives import SDS, VSD, DiffInstruct
from fdistill.theory.preconditioning import Direct
from fdistill.training.generation import simulate

MEAN, STD, SIGMA = 0.3, 0.7, 0.8
TEACHER = GaussianMixture([[MEAN]], [STD])


def atoms(theta):
    """Particles of equal weight at theta, in one dimension."""
    n = len(theta)
    return Law(theta[:, None], torch.zeros(n, 1, 1, dtype=torch.float64), torch.full((n,), 1 / n, dtype=torch.float64))


def affine(theta):
    return Law(theta[None, :1], theta[1:].reshape(1, 1, 1), torch.ones(1, dtype=torch.float64))


def gradient(objective, student, theta):
    """Expected gradient of the student's term by theta, with exact scores."""
    at = problem(TEACHER, student, theta, SIGMA)
    nodes = quadrature(at.student(at.theta.detach()), SIGMA, step=0.4)
    value = objective.loss(at.noised(nodes)).terms["student"].value
    return torch.autograd.grad((nodes.share * value).sum(), at.theta)[0]


def descended(objective, student, theta):
    for _ in range(80):
        theta = (torch.tensor(theta, dtype=torch.float64) - 4 * gradient(objective, student, theta)).tolist()
    return torch.tensor(theta, dtype=torch.float64)


def test_sds_is_vsd_of_a_single_particle():
    one = (atoms, [-0.4])
    assert_close(gradient(SDS(), *one), gradient(VSD(), *one), rtol=1e-12, atol=0)
    three = (atoms, [-0.4, 0.1, 0.9])
    assert (gradient(SDS(), *three) - gradient(VSD(), *three)).norm() > 0.01


def test_sds_ends_at_the_mode_and_vsd_at_the_teacher():
    assert_close(descended(SDS(), affine, [0.9, 0.5]), torch.tensor([MEAN, 0.0]).double(), rtol=0, atol=1e-6)
    found = descended(VSD(), affine, [0.9, 0.5])
    assert_close(found, torch.tensor([MEAN, STD]).double(), rtol=0, atol=1e-6)


def test_particles_of_sds_coincide_and_those_of_vsd_keep_most_of_the_variance():
    start = [-0.2, 0.3, 0.9]
    assert descended(SDS(), atoms, start).std() < 1e-6
    found = descended(VSD(), atoms, start)
    assert abs(found.mean() - MEAN) < 1e-6
    assert 0.6 * STD < found.std(unbiased=False) < STD


class Affine(Generator):
    """x = A z + b in two dimensions."""

    sample_shape, num_classes = (2,), 0

    def __init__(self, matrix, shift):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor(matrix, dtype=torch.float64))
        self.shift = torch.nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def generate(self, z, condition):
        return z @ self.matrix.T + self.shift


def kl(mean, covariance, teacher_mean, teacher_variance):
    """KL of a Gaussian from an isotropic one."""
    trace = covariance.diagonal().sum() + (mean - teacher_mean).square().sum()
    return (trace / teacher_variance - covariance.logdet() + 2 * teacher_variance.log()) / 2


@pytest.mark.parametrize("level", [1.0, 4.0])
def test_a_linear_generator_descends_the_exact_divergence_whatever_its_level(level):
    def law(theta):
        return Law(theta[None, :2], theta[2:].reshape(1, 2, 2), torch.ones(1, dtype=torch.float64))

    at = problem(GaussianMixture([[0.5, -0.2]], [0.6]), law, [0.1, 0.2, 0.9, 0.3, -0.2, 0.5], SIGMA)
    generator = Affine([[0.9, 0.3], [-0.2, 0.5]], [0.1, 0.2])
    nodes = quadrature(law(at.theta.detach()), SIGMA)
    x = simulate(Denoiser(generator, Direct()), [nodes.z], (level,), Condition(), learns=True)
    value = DiffInstruct().loss(at.noised(nodes)._replace(x=x)).terms["student"].value
    found = torch.autograd.grad((nodes.share * value).sum(), [generator.shift, generator.matrix])
    identity = SIGMA**2 * torch.eye(2, dtype=torch.float64)
    covariance, variance = generator.matrix @ generator.matrix.T + identity, torch.tensor(0.6**2 + SIGMA**2).double()
    exact = kl(generator.shift, covariance, torch.tensor([0.5, -0.2]).double(), variance)
    expected = torch.autograd.grad(SIGMA**2 * exact / 2, [generator.shift, generator.matrix])
    assert_close(found, expected, rtol=1e-7, atol=1e-9)
