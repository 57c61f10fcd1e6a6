"""Small runs on a GPU: the tiny ones of the CPU, or 8x8 images, with optimisers that are fused."""

import functools

import torch
from tiny_runs import GivenData, distillation, fit

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.objectives import DMD2, FDistill, SiD
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM

ACCELERATOR = "gpu"
ADAM = functools.partial(torch.optim.AdamW, lr=1e-3, betas=(0.5, 0.99), fused=True)
FUSED = {"student_optimizer": ADAM, "fake_score_optimizer": ADAM}
ALTERNATING = {"turn": "alternating", "fake_updates_per_student": 2}
RUNS = {
    "fused": {"objective": FDistill(JensenShannon(), 0.1), "turn": "fused"},
    "alternating": {"objective": FDistill(JensenShannon(), 0.1), **ALTERNATING},
    "alternating, samples reused": {"objective": DMD2(), "reuse_generated": True, **ALTERNATING},
    "features of the fake score": {"objective": DMD2(), "discriminator": "fake_score", **ALTERNATING},
    "SiD, fused": {"objective": SiD(), "turn": "fused"},
    "two micro-batches": {"objective": FDistill(JensenShannon(), 0.1), "accumulate": 2, **ALTERNATING},
}


def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(SmallUNet(8, 1, (16, 32), num_classes=2), EDM(0.5))


def images(batch_size=16):
    x = 0.5 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return GivenData(x, 2, batch_size=batch_size)


def on_gpu(module, turns, data=None, **changes):
    """Train on one GPU, logging nothing unless the test says so; returns the trainer."""
    settings = {"accelerator": ACCELERATOR, "devices": 1, "log_every_n_steps": 0}
    return fit(module, turns, data or images(), **settings | changes)


def distilled(name, turns, teacher=None, module=None, **changes):
    """The module of one of RUNS after some turns; other settings are those of the trainer."""
    found = distillation(teacher or unet(), **FUSED | RUNS[name] | (module or {}))
    on_gpu(found, turns, **changes)
    return found
