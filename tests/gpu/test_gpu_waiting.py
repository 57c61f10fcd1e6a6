"""On CUDA the host never waits for the device inside a turn, nor between turns, unless a turn is logged."""

import lightning.pytorch as L
import pytest
import torch
from cuda_runs import FUSED, RUNS, distilled, images, on_gpu, unet
from tiny_runs import teacher_training

from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.objectives import DMD
from fdistill.theory.schedules import Linear
from fdistill.training.callbacks import LearningRate, RatioHistograms, TurnProgressBar

pytestmark = pytest.mark.gpu
WARM_UP = 6  # turns that allocate, compile kernels and fill caches: two cycles
TURNS = 12


class NoWaiting(L.Callback):
    """From the first turn after the warm-up on, an operation that waits for the device is an error."""

    def __init__(self, between_turns=False):
        self.between_turns, self.watched = between_turns, 0

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step >= WARM_UP:
            torch.cuda.set_sync_debug_mode("error")
            self.watched += 1

    def on_train_batch_end(self, trainer, *args):
        if not self.between_turns or trainer.global_step >= TURNS:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", RUNS)
def test_a_turn_never_waits(name, precision):
    distilled(name, TURNS, precision=precision, callbacks=[watch := NoWaiting()])
    assert watch.watched == TURNS - WARM_UP


def test_a_turn_of_pairs_never_waits(tmp_path):
    x = torch.zeros(32, 1, 8, 8)
    TeacherPairs(x, x, torch.arange(32) % 2).save(tmp_path / "pairs.safetensors")
    how = {"objective": DMD(), "pairs": str(tmp_path / "pairs.safetensors")}
    distilled("fused", TURNS, module=how, callbacks=[watch := NoWaiting()])
    assert watch.watched == TURNS - WARM_UP


def test_a_teacher_s_turn_never_waits():
    module = teacher_training(unet().network, optimizer=FUSED["student_optimizer"], label_dropout=0.1)
    on_gpu(module, TURNS, callbacks=[watch := NoWaiting()])
    assert watch.watched == TURNS - WARM_UP


@pytest.mark.parametrize("name", ["fused", "alternating"])
def test_batches_progress_bar_and_callbacks_that_are_not_due_do_not_wait_either(name, capfd):
    """Batches come from pinned memory; the bar shows losses that were read when they were logged."""
    callbacks = [LearningRate(Linear(1.0, 0.1, 100)), RatioHistograms(1000), TurnProgressBar(refresh_rate=1)]
    settings = {"enable_progress_bar": True, "log_every_n_steps": 1000}
    distilled(name, TURNS, callbacks=[*callbacks, watch := NoWaiting(between_turns=True)], **settings)
    assert watch.watched == TURNS - WARM_UP


def test_a_logged_turn_waits_and_so_does_a_check_before_optimisers_that_are_not_fused():
    with pytest.raises(RuntimeError, match="CUDA"):
        distilled("fused", TURNS, callbacks=[NoWaiting()], log_every_n_steps=1)
    torch.cuda.set_sync_debug_mode("default")
    plain = dict.fromkeys(FUSED, torch.optim.AdamW)
    with pytest.raises(RuntimeError, match="CUDA"):
        distilled("fused", TURNS, data=images(), module=plain, callbacks=[NoWaiting()])
