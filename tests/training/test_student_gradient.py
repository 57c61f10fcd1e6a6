"""The student's update is the gradient that theory says: term by term, in closed form, by quadrature, and as a flow."""

import functools
import math

import numpy as np
import pytest
import torch
from tiny_runs import GivenData, Recorded, distillation, exact, fit, mlp, ring, weights
from torch import nn
from torch.nn import functional as F

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import GaussianMixture
from fdistill.theory.divergences import FDivergence, ForwardKL, JensenShannon, ReverseKL, SquaredHellinger
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

UNCLIPPED = {"gradient_clip": 1e9, "student_optimizer": Recorded}
FROZEN = functools.partial(Recorded, lr=0.0)


def student_gradient(module, data):
    """The gradient of the student's parameters in turn 0, as plain descent with step 1 reveals it."""
    before = weights(module)
    fit(module, 1, data)
    return {name: before[f"student.{name}"] - p.detach() for name, p in module.student.named_parameters()}


def centred_log_ratio(logit, sigma, bins):
    """Stage 1 from one batch: clip r to [0.1, 20], divide by its mean within each tenth of the noise levels."""
    raw = logit.exp().clamp(0.1, 20)
    bin_of = (torch.distributions.Normal(-0.5, 1.0).cdf(sigma.log()) * bins).long()
    mean = torch.stack([raw[bin_of == b].mean() for b in range(bins)])
    return (raw / mean[bin_of]).log()


@pytest.mark.parametrize("normaliser", ["sample", "sigma"])
@pytest.mark.parametrize(
    ("divergence", "guidance", "adversarial_weight", "discriminator"),
    [
        (ReverseKL(), 1.0, 0.0, "teacher"),
        (ReverseKL(), 2.5, 0.3, "teacher"),
        (JensenShannon(), 2.5, 0.3, "teacher"),
        (JensenShannon(), 0.0, 0.0, "sample"),
        (ForwardKL(), 1.0, 0.7, "sample"),
        (SquaredHellinger(), -0.5, 0.0, "teacher"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FDivergence) else str(value),
)
def test_student_descends_normaliser_times_h_times_the_difference_of_denoisers(
    divergence, guidance, adversarial_weight, discriminator, normaliser
):
    data = ring(batch_size=128)
    module = distillation(
        mlp(num_classes=2),
        student=mlp(num_classes=2, seed=1),
        fake_score=mlp(num_classes=2, seed=2),
        divergence=divergence,
        guidance=guidance,
        adversarial_weight=adversarial_weight,
        discriminator=discriminator,
        normaliser=normaliser,
        fake_score_optimizer=FROZEN,
        ratio_bins=5,
        ratio_decay=0.0,
        **UNCLIPPED,
    )
    batch = next(iter(data.train_dataloader()))
    generated = module._generate(batch, next(module.micro_batches(len(batch.x))), True)
    x, x_t, sigma, labels = generated.x, generated.x_t, generated.sigma, generated.condition["labels"]
    assert torch.equal(labels, batch.classes)
    column, none = sigma[:, None], torch.full_like(labels, 2)

    def logit_at(x_t):
        if discriminator == "sample":
            return module.ratio.discriminator(x_t, sigma, labels, 1.0)
        return module.ratio.discriminator(module.teacher.encode(x_t, sigma, labels).features)

    with torch.no_grad():
        without, with_class = module.teacher(x_t, sigma, none), module.teacher(x_t, sigma, labels)
        d_p = without + guidance * (with_class - without)
        d_q = module.fake_score(x_t, sigma, labels)
        h = torch.ones_like(sigma)
        if module.ratio is not None:
            h = FDivergence.weight(divergence, centred_log_ratio(logit_at(x_t), sigma, 5))  # r^2 f'' from f alone
        omega = {"sample": 1 / (x - d_p).abs().mean(1), "sigma": (sigma**2 + 1).sqrt() / sigma}[normaliser]
        g = (omega * h / h.mean())[:, None] * (d_q - d_p)
    loss = (g * x).mean()
    if adversarial_weight:
        noise = ((x_t - x) / column).detach()
        loss = loss + adversarial_weight * F.softplus(-logit_at(x + column * noise)).mean()
    expected = torch.autograd.grad(loss, list(module.student.parameters()))

    found = student_gradient(module, data)
    for (name, value), truth in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=2e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


class OracleGaussian(GaussianMixture):
    """The exact denoiser with one idle parameter, so that an optimiser can hold it."""

    def __init__(self, mean: float, std: float):
        super().__init__([[mean]], [std])
        self.idle = nn.Parameter(torch.zeros(()))

    def decode(self, encoding):
        return super().decode(encoding) + 0 * self.idle


class OracleRatio(nn.Module):
    """The logit ln p_t/q_t of two mixtures, in the place of a sample discriminator."""

    def __init__(self, p, q):
        super().__init__()
        self.p, self.q, self.idle = p, q, nn.Parameter(torch.zeros(()))

    def forward(self, x, sigma, labels, sigma_data):
        return self.p.log_prob(x, sigma) - self.q.log_prob(x, sigma) + 0 * self.idle


P_MEAN, P_STD, BIAS, SIGMA_INIT = 1.1, 0.42, 0.5, 2.0
ROOT = math.sqrt(SIGMA_INIT**2 + 1)  # EDM with sigma_data 1: c_skip = 1 / ROOT^2, c_out = SIGMA_INIT / ROOT
Q_MEAN, Q_STD, SLOPE = SIGMA_INIT / ROOT * BIAS, SIGMA_INIT / ROOT**2, SIGMA_INIT / ROOT


def quadrature_gradient(h):
    """E[h omega (D_q - D_p)] / E[h] dx/dbias over noise levels and x_t ~ q_t in float64; h is a function of ln r."""
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(80)
    share = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    sigma = LogNormal(-0.5, 0.5).quantile(share)[:, None]
    p_var, q_var = P_STD**2 + sigma**2, Q_STD**2 + sigma**2
    x = Q_MEAN + q_var.sqrt() * torch.tensor(nodes)
    mass = torch.tensor(node_weights / node_weights.sum()) / len(share)
    d_p = (P_STD**2 * x + sigma**2 * P_MEAN) / p_var
    d_q = (Q_STD**2 * x + sigma**2 * Q_MEAN) / q_var
    log_ratio = ((x - Q_MEAN) ** 2 / q_var - (x - P_MEAN) ** 2 / p_var + (q_var / p_var).log()) / 2
    omega = (sigma**2 + 1).sqrt() / sigma
    weight = h(log_ratio)
    return float((mass * weight * omega * (d_q - d_p)).sum() / (mass * weight).sum() * SLOPE)


@pytest.mark.parametrize(
    ("divergence", "h"),
    [(ReverseKL(), torch.ones_like), (JensenShannon(), torch.sigmoid), (ForwardKL(), torch.exp)],
    ids=["reverse KL", "Jensen-Shannon", "forward KL"],
)
def test_with_exact_scores_and_ratio_the_update_is_the_derivative_by_quadrature(divergence, h):
    n = 100_000
    fake = OracleGaussian(Q_MEAN, Q_STD)
    teacher = exact([[P_MEAN]], [P_STD])
    module = distillation(
        teacher,
        student=mlp(dim=1, initial_output=[BIAS]),  # so the student is exactly N(Q_MEAN, Q_STD^2)
        fake_score=Denoiser(fake, X0Prediction(VarianceExploding())),
        sigma_data=1.0,
        divergence=divergence,
        noise_levels=LogNormal(-0.5, 0.5),
        discriminator="sample",
        fake_score_optimizer=FROZEN,
        ratio_decay=0.0,
        **UNCLIPPED,
    )
    if module.ratio is not None:
        module.ratio.discriminator = OracleRatio(teacher.network, fake)
        module.ratio.log_clip = (-20.0, 20.0)
    data = GivenData(torch.zeros(n, 1), batch_size=n)
    found = float(student_gradient(module, data)["network.output.bias"])
    assert found == pytest.approx(quadrature_gradient(h), rel=3e-3)
    assert found < 0  # descent moves the mean up, to the teacher's


@pytest.mark.parametrize("turn", ["fused", "alternating"])
@pytest.mark.parametrize("divergence", [ReverseKL(), JensenShannon()], ids=["reverse KL", "Jensen-Shannon"])
@pytest.mark.slow
def test_the_flow_ends_at_the_teacher(divergence, turn):
    mean, std = torch.tensor([1.0, -1.0]), 0.5
    teacher = exact([mean.tolist()], [std])
    data = GivenData(mean + std * torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)), batch_size=256)
    module = distillation(
        teacher,
        student=mlp(sigma_data=2.0, initial_output=[0.0, 0.0]),  # N(0, 1): off the mean and twice as wide
        fake_score=mlp(sigma_data=2.0),
        sigma_data=std,
        divergence=divergence,
        discriminator="sample",
        turn=turn,
        fake_updates_per_student=1,
        noise_levels=LogNormal(-0.5, 0.8),
        student_optimizer=functools.partial(torch.optim.Adam, lr=3e-3, betas=(0.0, 0.99)),
        fake_score_optimizer=functools.partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.99)),
        ema_decay=0.98,
    )
    start = module.generative_model().sample(torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)))
    assert (start.mean(0) - mean).abs().min() > 0.9
    assert start.std(0).min() > 1.8 * std
    fit(module, 400 if turn == "fused" else 800, data)
    samples = module.generative_model().sample(torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(samples.std(0), torch.full((2,), std), rtol=0.15, atol=0)
