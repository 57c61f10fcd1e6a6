"""The rate of every group follows the schedule, also through a resume."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, teacher_training, weights

from fdistill.callbacks import LearningRate
from fdistill.schedules import Linear, Steps


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])


def test_every_group_has_its_own_rate_times_the_factor_of_the_update():
    rates = Rates()
    module = distillation(discriminator_lr=0.5, turn="alternating", fake_updates_per_student=1)
    fit(module, 6, callbacks=[LearningRate(Linear(1.0, 0.0, updates=2)), rates])
    factors = [1, 1, 0.5, 0.5, 0, 0]  # student, fake score, discriminator; two turns an update
    assert rates.seen == [[pytest.approx(rate * factor) for rate in (0.01, 0.01, 0.5)] for factor in factors]


def test_a_factor_of_zero_moves_nothing():
    module = distillation()
    before = weights(module)
    fit(module, 2, callbacks=[LearningRate(Steps([0.0, 1.0], [5]))])
    assert all(torch.equal(before[name], p) for name, p in module.student.named_parameters(prefix="student"))


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(tmp_path):
    callbacks = [LearningRate(Linear(1.0, 0.2, updates=6))]
    fit(first := teacher_training(), 3, callbacks=callbacks).save_checkpoint(tmp_path / "half.ckpt")
    fit(continued := teacher_training(), 6, callbacks=callbacks, resume_from=tmp_path / "half.ckpt")
    fit(whole := teacher_training(), 6, callbacks=callbacks)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(continued).items())
    assert any(not torch.equal(value, weights(whole)[name]) for name, value in weights(first).items())


def test_negative_factors_are_refused():
    with pytest.raises(ValueError, match="factor >= 0: got -1"):
        fit(distillation(), 1, callbacks=[LearningRate(Steps([-1.0, 1.0], [5]))])
