"""Dropout belongs to the training of a teacher: in a distillation no network drops anything, whoever wrote it."""

import functools

import pytest
import torch
from stock_models import SMALL_DIT, SMALL_UNET
from tiny_runs import GivenData, Recorded, distillation, fit, teacher_training, weights
from torch import nn

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet, EDM2UNet, SongUNet, StockDiT, StockUNet, TwoExperts
from fdistill.objectives import DMD2, DiffInstruct, SiDA
from fdistill.theory.preconditioning import EDM

P = 0.13
STILL = functools.partial(Recorded, lr=0.0)


def edm2(p):
    return EDM2UNet(8, 3, 0, 8, (1, 2), blocks_per_level=1, attention_resolutions=(4,), channels_per_head=8, dropout=p)


NETWORKS = {
    "SongUNet": lambda p: SongUNet(8, 3, 0, 8, (1,), blocks_per_level=1, attention_resolutions=(), dropout=p),
    "DiffusersUNet": lambda p: DiffusersUNet(8, 3, (8, 16), dropout=p),
    "StockUNet": lambda p: StockUNet(SMALL_UNET | {"dropout": p}),
    "StockDiT": lambda p: StockDiT(SMALL_DIT | {"dropout": p}),
    "EDM2UNet": edm2,
    "two experts": lambda p: TwoExperts(edm2(p), edm2(p), split=0.0),
}
PLAIN = [name for name in NETWORKS if name not in ("EDM2UNet", "two experts")]  # these scale their weights first


def denoiser(name, p=P, seed=0):
    """All weights random, so that nothing that is dropped counts for nothing."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = NETWORKS[name](p)
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return Denoiser(network, EDM(0.5)).eval()


def data(module):
    shape = module.student.sample_shape
    classes = module.student.num_classes
    return GivenData(torch.randn(8, *shape, generator=torch.Generator().manual_seed(1)), classes, batch_size=4)


def validated(module, turns, **changes):
    """A run whose modes a validation switches after every turn."""
    validation = {"limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    return fit(module, turns, data(module), **validation | changes)


@pytest.mark.parametrize("name", PLAIN)
def test_equal_weights_have_a_matching_loss_of_exactly_0(name, tmp_path):
    arguments = {"objective": DiffInstruct(), "student_optimizer": STILL, "fake_score_optimizer": STILL}
    first = distillation(denoiser(name), **arguments)
    run = validated(first, 2)
    run.save_checkpoint(tmp_path / "two.ckpt")
    resumed = validated(distillation(denoiser(name), **arguments), 4, resume_from=tmp_path / "two.ckpt")
    norms = [norm for each in (run, resumed) for (norm,) in each.optimizers[0].norms]
    assert norms == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "objective", "reads"),
    [
        ("DiffusersUNet", DMD2(0.1), "teacher"),
        ("SongUNet", SiDA(0.1), "fake_score"),
        ("EDM2UNet", DiffInstruct(), "teacher"),
    ],
)
def test_a_distillation_is_that_of_networks_without_dropout(name, objective, reads):
    ends = []
    for p in (P, 0.0):
        torch.manual_seed(int(100 * p))
        networks = {"student": denoiser(name, p, 1), "fake_score": denoiser(name, p, 2)}
        turns = {"turn": "alternating", "fake_updates_per_student": 1}
        module = distillation(denoiser(name, p), objective, discriminator=reads, **networks, **turns)
        before = torch.get_rng_state()
        validated(module, 2)
        assert torch.equal(before, torch.get_rng_state()), "something was drawn from the global generator"
        ends.append(weights(module))
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


@pytest.mark.parametrize("name", ["EDM2UNet", "two experts"])
def test_weights_of_unit_magnitude_stay_so_without_dropout(name):
    module = distillation(denoiser(name), DiffInstruct())
    fit(module, 2, data(module))
    normalised = module.student.state_dict()  # what the next turn would begin with
    sizes = [value.flatten(1).square().mean(1).sqrt() for key, value in normalised.items() if key.endswith("weight")]
    torch.testing.assert_close(torch.cat(sizes), torch.ones(sum(map(len, sizes))), rtol=0, atol=5e-3)


def test_modes_survive_a_switch_and_a_teacher_that_trains_drops_whatever_mode_its_network_came_in():
    module = distillation(denoiser("DiffusersUNet"))
    for mode in (False, True):
        module.train(mode)
        assert not any(part.training for part in module.modules() if isinstance(part, nn.Dropout))
    assert module.training
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        teacher = teacher_training(denoiser("DiffusersUNet").network)
        fit(teacher, 2, GivenData(torch.zeros(8, 3, 8, 8)))
        ends.append(teacher.denoiser.network.unet.conv_in.weight.detach())
    assert not torch.equal(*ends)
