"""What a cycle of turns costs, counted by torch in units of one forward pass F, and samples that serve twice."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import GivenData, distillation, fit, mlp
from torch.utils.flop_counter import FlopCounterMode

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import DiffusersUNet
from fdistill.theory.preconditioning import EDM

BATCH = 8


def unet():
    """A network whose convolutions outweigh the discriminator's heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(DiffusersUNet(resolution=8, widths=(32, 64), num_classes=2), EDM(1.0))


def images():
    return GivenData(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 2, batch_size=BATCH)


def alternating(denoiser=None, **changes):
    arguments = {"adversarial_weight": 0.1, "turn": "alternating", "fake_updates_per_student": 5}
    return distillation(denoiser or unet(), **arguments | changes)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Flops(L.Callback):
    """Of each turn."""

    def __init__(self):
        self.turns = []

    def on_train_batch_start(self, *_):
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def on_train_batch_end(self, *_):
        self.counter.__exit__(None, None, None)
        self.turns.append(self.counter.get_total_flops())


@pytest.mark.parametrize(("reuse_generated", "most"), [(True, 24), (False, 29)])
def test_a_cycle_of_five_fake_turns_costs_at_most_so_many_forward_passes_and_the_heads(reuse_generated, most):
    module = alternating(reuse_generated=reuse_generated)
    fit(module, 12, images(), callbacks=[watch := Flops()])
    x, sigma, labels = torch.zeros(BATCH, 1, 8, 8), torch.ones(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    with torch.no_grad():
        half = module.teacher.encode(x, sigma, labels)
        forward = counted(lambda: module.teacher(x, sigma, labels))
        logit = counted(lambda: module.ratio.logit(half, x, sigma, labels))
    heads = (5 * 2 * 3 + 3) * logit  # forward and backward: of generated and real samples, and in the student's turn
    assert sum(watch.turns[6:]) <= most * forward + heads


class Generating(L.Callback):
    """How often the student ran in every turn, and what the discriminator learnt from then."""

    def __init__(self):
        self.calls, self.seen = [], []

    def on_train_start(self, trainer, module):
        encode, read = module.student.network.encode, module._generate

        def count(*arguments):
            self.calls[-1] += 1
            return encode(*arguments)

        def keep(*arguments):
            self.seen.append(read(*arguments))
            return self.seen[-1]

        module.student.network.encode, module._generate = count, keep

    def on_train_batch_start(self, *_):
        self.calls.append(0)


def test_fake_turns_noise_the_samples_of_the_last_students_turn_anew():
    module = alternating(mlp(num_classes=2), fake_updates_per_student=3, reuse_generated=True)
    fit(module, 9, callbacks=[watch := Generating()])
    assert watch.calls == [1, 0, 0, 1, 0, 0, 0, 1, 0]
    first, _, _, second, *again, third, last = watch.seen
    for turn in again:
        assert torch.equal(turn.x, second.x)
        assert torch.equal(turn.condition["labels"], second.condition["labels"])
        assert not torch.equal(
            (turn.x_t - turn.x) / turn.sigma[:, None], (second.x_t - second.x) / second.sigma[:, None]
        )
    assert not torch.equal(first.x, second.x)
    assert torch.equal(last.x, third.x)
    assert not any(turn.x.requires_grad for turn in again)


def test_real_samples_keep_their_own_classes_beside_reused_ones(monkeypatch):
    module = alternating(mlp(num_classes=2), discriminator="sample", reuse_generated=True)
    given, labels, real = [], [], type(module)._real

    def noted(self, *arguments):
        found = real(self, *arguments)
        labels.append(found.condition["labels"])
        return found

    monkeypatch.setattr(type(module), "_real", noted)

    class Batches(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            given.append(batch.classes)

    fit(module, 5, callbacks=[Batches()])
    assert len(labels) == len(given) == 5
    assert all(torch.equal(of_the_logit, own) for of_the_logit, own in zip(labels, given, strict=True))
    assert not torch.equal(given[0], given[1])


def test_a_fused_turn_has_nothing_to_reuse():
    with pytest.raises(ValueError, match="reuse_generated"):
        distillation(turn="fused", reuse_generated=True)
