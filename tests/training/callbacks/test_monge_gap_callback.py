"""metric/monge_gap describes the average's map at the updates asked for, and nothing else."""

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from tiny_runs import distillation, fit, mlp, ring, teacher_training

from fdistill.evaluation.metrics import monge_gap
from fdistill.training.callbacks import MongeGap


class Gaps(DummyLogger):
    """The gaps by turn."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        if "metric/monge_gap" in metrics:
            self.values[step] = metrics["metric/monge_gap"]


def measured(module, turns, callback, **how):
    gaps = Gaps()
    run = fit(module, turns, ring(), callbacks=[callback], logger=gaps, **how)
    return run, gaps.values


@pytest.mark.parametrize("classes", [0, 2])
def test_it_is_the_gap_per_entry_of_the_same_latents_within_their_classes(classes):
    module = distillation(mlp(num_classes=classes), ema_decay=0.0)
    run, gaps = measured(module, 2, MongeGap(every_n_updates=2, num_samples=40, seed=3))
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(40) % 2 if classes else None
    x = module.generative_model().sample(z, labels)
    assert gaps == {2: pytest.approx(float(monge_gap(z, x, labels=labels)) / 2, rel=1e-6)}
    assert run.callback_metrics["metric/monge_gap"] == pytest.approx(gaps[2])


def test_it_counts_student_updates_and_goes_on_after_a_resume(tmp_path):
    module = distillation(turn="alternating", fake_updates_per_student=2)
    run, gaps = measured(module, 6, MongeGap(every_n_updates=1, num_samples=8))
    assert sorted(gaps) == [3, 6]
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = distillation(turn="alternating", fake_updates_per_student=2)
    assert sorted(measured(again, 9, MongeGap(1, 8), resume_from=tmp_path / "a.ckpt")[1]) == [9]


def test_a_teacher_s_map_has_one_too():
    assert sorted(measured(teacher_training(num_steps=2), 2, MongeGap(2, 8))[1]) == [2]


def test_what_it_cannot_measure_is_refused():
    with pytest.raises(ValueError, match="MongeGap"):
        fit(distillation(renoise_levels=[0.5]), 1, callbacks=[MongeGap()])
    with pytest.raises(ValueError, match="num_samples"):
        MongeGap(1, 1)
