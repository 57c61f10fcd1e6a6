"""Every sampler of the package, found by its class, with arguments that make it draw noise where it can."""

import inspect
import math

import torch

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture
from fdistill.sampling import DDIM, GDDIM, Heun, PredictorCorrector, Restart, Sampler
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction

VARIANTS = {
    DDIM: [DDIM(0.5), DDIM(1.0)],
    GDDIM: [GDDIM(0.5), GDDIM(1.2)],
    Heun: [Heun(churn=6.0), Heun(3.0, 0.1, 4.0, 1.01)],
    PredictorCorrector: [
        PredictorCorrector(GDDIM(1.0), 2),
        PredictorCorrector(Heun(churn=3.0)),
        PredictorCorrector(norms="expected"),
    ],
    Restart: [Restart(0.3, 2.0), Restart(0.3, 2.0, times=3, num_steps=2)],
}


def concrete_subclasses(cls):
    below = [found for sub in cls.__subclasses__() for found in [sub, *concrete_subclasses(sub)]]
    return [sub for sub in below if sub.__module__.startswith("fdistill") and not inspect.isabstract(sub)]


def cases(cls):
    required = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    return [*([] if required else [cls()]), *VARIANTS.get(cls, [])]


SAMPLERS = [case for cls in concrete_subclasses(Sampler) for case in cases(cls)]
STOCHASTIC = [sampler for sampler in SAMPLERS if sampler.is_stochastic]


def name(sampler):
    """Class and arguments, for the name of a test."""
    arguments = sampler.spec()["init_args"].values()
    inner = ["-".join(a["class_path"].split(".")[-1:]) if isinstance(a, dict) else f"{a}" for a in arguments]
    return "-".join([type(sampler).__name__, *inner])


class CountingDenoiser(Denoiser):
    """Counts evaluations of the whole network, and remembers at which levels."""

    def __init__(self, network, preconditioning):
        super().__init__(network, preconditioning)
        self.asked = []

    def forward(self, x, sigma, labels=None):
        self.asked.append((x.detach().clone(), float(sigma[0])))
        return super().forward(x, sigma, labels)

    @property
    def levels(self):
        return [level for _, level in self.asked]


def exact(means=((0.3, -0.3),), stds=(0.5,), weights=None):
    """The denoiser of a Gaussian mixture."""
    return CountingDenoiser(GaussianMixture(means, stds, weights), X0Prediction(VarianceExploding()))


def network(num_classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return CountingDenoiser(MLP(dim=2, width=16, depth=2, num_classes=num_classes).to(dtype), EDM(0.5))


def latents(n=16, dim=2, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class GivenNoise:
    """In place of the streams of latents: one generator's numbers for the whole batch, which is fast, in turn."""

    seed = 1

    def __init__(self, latents):
        self.like, self.generator = latents, torch.Generator().manual_seed(self.seed)
        self.drawn = []

    def normal(self):
        self.drawn.append(torch.randn(self.like.shape, dtype=self.like.dtype, generator=self.generator))
        return self.drawn[-1]


class UnitNoise:
    """The k-th draw is 1 for the k-th latent after the first, and 0 for all others: columns of an affine map."""

    def __init__(self, latents):
        self.like, self.count = latents, 0

    def normal(self):
        self.count += 1
        unit = torch.zeros_like(self.like)
        unit[self.count] = 1
        return unit


def response(sampler, denoiser, grid, monkeypatch, draws=2000):
    """What an affine sampler of 1-D data makes of each number it reads: offset, and coefficients [1 + draws]."""
    monkeypatch.setattr("fdistill.sampling.base.LatentStreams", UnitNoise)
    unit = torch.zeros(draws + 2, 1, dtype=torch.float64)
    unit[0] = 1  # the latent alone, then each draw alone, then nothing
    ends = sampler(denoiser, unit, grid).squeeze(1)
    return ends[-1], (ends[:-1] - ends[-1])


def gaussian_flow(noise, sigma_max, sigma, centre=(0.3, -0.3), std=0.5):
    """Where the ODE of Gaussian data takes latents: x - mean shrinks with the deviation of the marginal."""
    centre = torch.tensor(centre, dtype=torch.float64)
    return centre + (sigma_max * noise - centre) * math.hypot(std, sigma) / math.hypot(std, sigma_max)
