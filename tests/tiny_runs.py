"""Distillation small enough for a test: two dimensions, small MLPs, exact teachers, a trainer that writes nothing."""

import lightning.pytorch as L
import torch

from fdistill.data import GaussianMixtureData, GenerativeDataModule, InMemorySplit
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture
from fdistill.objectives import FDistill
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import EDM, X0Prediction
from fdistill.training import DistillationModule, TeacherModule


class GivenData(GenerativeDataModule):
    """Data that a test hands over; labels are 0, 1, ... in turn where there are classes."""

    def __init__(self, x, num_classes=0, batch_size=8):
        super().__init__(batch_size)
        self.x, self._num_classes = x, num_classes

    @property
    def sample_shape(self):
        return tuple(self.x.shape[1:])

    @property
    def num_classes(self):
        return self._num_classes

    def load_splits(self):
        labels = torch.arange(len(self.x)) % max(self.num_classes, 1)
        return InMemorySplit(self.x, labels), InMemorySplit(self.x, labels)

    def spec(self):
        return {"class_path": "GivenData", "init_args": {}}


class Recorded(torch.optim.SGD):
    """Plain descent that writes down each step's gradient norms; with lr=1 the change of a weight is its gradient."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, lr=lr)
        self.norms = []

    def step(self, closure=None):
        groups = [[p.grad for p in group["params"] if p.grad is not None] for group in self.param_groups]
        self.norms.append([float(torch.cat([g.flatten() for g in group]).norm()) for group in groups])
        return super().step(closure)


def adam(parameters, lr=1e-2):
    return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.99))


def mlp(num_classes=0, seed=0, dim=2, sigma_data=1.0, **network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(MLP(dim=dim, width=16, depth=2, num_classes=num_classes, **network), EDM(sigma_data))


def exact(means, stds, weights=None):
    """The denoiser of a Gaussian mixture."""
    return Denoiser(GaussianMixture(means, stds, weights), X0Prediction(VarianceExploding()))


def distillation(teacher=None, objective=None, divergence=None, adversarial_weight=0.0, normaliser="sigma", **changes):
    """A module whose networks all start from one small MLP, and f-distill, unless the test says otherwise."""
    arguments = {
        "objective": objective or FDistill(divergence or JensenShannon(), adversarial_weight, normaliser),
        "noise_levels": LogNormal(-0.5, 1.0),
        "student_optimizer": adam,
        "fake_score_optimizer": adam,
        "sigma_init": 2.0,
        "turn": "fused",
    }
    return DistillationModule(teacher or mlp(), **arguments | changes)


def teacher_training(network=None, **changes):
    arguments = {
        "preconditioning": EDM(1.0),
        "noise_levels": LogNormal(-0.5, 1.0),
        "optimizer": adam,
        "sigma_data": 1.0,
    }
    return TeacherModule(network or mlp().network, **arguments | {"sigma_data": 1.0} | changes)


def ring(batch_size=32, num_modes=2):
    return GaussianMixtureData(num_modes=num_modes, num_samples=512, num_held_out=64, batch_size=batch_size)


def trainer(turns, folder=None, callbacks=(), **changes):
    arguments = {
        "accelerator": "cpu",
        "max_steps": turns,
        "max_epochs": -1,
        "logger": False,
        "callbacks": list(callbacks),
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**arguments | changes)


def fit(module, turns, data=None, resume_from=None, **changes):
    """Train for some turns; returns the trainer."""
    run = trainer(turns, **changes)
    run.fit(module, datamodule=data or ring(), ckpt_path=resume_from)
    return run


def weights(module):
    """Bit-exact copies of all parameters and buffers."""
    return {name: value.clone() for name, value in torch.nn.Module.state_dict(module).items()}


def moved(before, module, part):
    """Whether any tensor of one part changed since."""
    now = weights(module)
    return any(not torch.equal(old, now[name]) for name, old in before.items() if name.startswith(f"{part}."))
