"""Samples of the student's turn that serve the fake score's turns after it."""

import functools

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, mlp

from fdistill.training import distillation_turn


def alternating(denoiser, **changes):
    arguments = {"adversarial_weight": 0.1, "turn": "alternating", "fake_updates_per_student": 5}
    return distillation(denoiser, **arguments | changes)


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


@pytest.mark.parametrize(("ranks", "reused"), [(1, True), (2, False)])
def test_ranks_reuse_after_a_resume_all_or_none(monkeypatch, tmp_path, ranks, reused):
    """A sharded student gathers its weights, which every rank does or none."""
    build = functools.partial(alternating, mlp(num_classes=2), fake_updates_per_student=3, reuse_generated=True)
    fit(build(), 5).save_checkpoint(tmp_path / "five.ckpt")
    monkeypatch.setattr(distillation_turn, "world_size", lambda: ranks)
    continued = build()
    fit(continued, 6, resume_from=tmp_path / "five.ckpt", callbacks=[watch := Generating()])
    assert watch.calls == [0 if reused else 1]


def test_a_fused_turn_has_nothing_to_reuse():
    with pytest.raises(ValueError, match="reuse_generated"):
        distillation(turn="fused", reuse_generated=True)
