"""The best checkpoint is the best, and a run stops when nothing improves."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit

from fdistill.callbacks import BestCheckpoint, StopEarly
from fdistill.callbacks.measured import publish


class Says(L.Callback):
    """Publishes given values, one every second turn."""

    def __init__(self, values, name="metric/given"):
        self.values, self.name = values, name

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step % 2 == 0:
            publish(trainer, pl_module, {self.name: self.values[trainer.global_step // 2 - 1]})


def run(turns, values, *callbacks, **changes):
    module = distillation()
    saves = any(isinstance(callback, BestCheckpoint) for callback in callbacks)
    return fit(module, turns, callbacks=[*callbacks, Says(values)], enable_checkpointing=saves, **changes), module


@pytest.mark.parametrize(("mode", "best"), [("min", 6), ("max", 4)])
def test_the_best_checkpoint_holds_the_turn_of_the_best_value(tmp_path, mode, best):
    run(10, [3.0, 5.0, 1.0, 2.0, 1.0], BestCheckpoint("metric/given", mode), folder=tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == best
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path):
    run(6, [3.0, float("nan"), float("-inf")], BestCheckpoint("metric/given"), folder=tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 2


def test_a_resumed_run_keeps_the_best_of_before(tmp_path):
    first, _ = run(4, [1.0, 2.0], BestCheckpoint("metric/given"), folder=tmp_path)
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = BestCheckpoint("metric/given")
    run(8, [0.0, 0.0, 3.0, 4.0], again, folder=tmp_path, resume_from=str(tmp_path / "last.ckpt"))
    assert float(again.best_model_score) == 1.0
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 2


def test_a_run_stops_after_so_many_measurements_without_improvement():
    early = StopEarly("metric/given", patience=2)
    trainer, _ = run(20, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.0, 0.0, 0.0, 0.0], early)
    assert (early.best, early.best_turn) == (1.0, 8)
    assert (
        trainer.global_step == 13
    )  # measured after turn 12, seen at the end of the next: it stands before the measure


def test_an_improvement_below_min_delta_is_none():
    early = StopEarly("metric/given", patience=2, min_delta=0.5, mode="max")
    trainer, _ = run(20, [1.0, 1.2, 1.4, 1.6, 9.0], early)
    assert (early.best, trainer.global_step) == (1.0, 7)


def test_a_resumed_run_goes_on_waiting(tmp_path):
    first, _ = run(5, [1.0, 2.0], StopEarly("metric/given", patience=2))
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer, _ = run(
        20, [0.0] * 2 + [3.0] * 8, StopEarly("metric/given", patience=2), resume_from=str(tmp_path / "last.ckpt")
    )
    assert trainer.global_step == 7


def test_a_metric_that_nobody_measures_is_named_with_those_that_are():
    with pytest.warns(UserWarning, match=r"metric/fid was never measured.*this run measured metric/given"):
        run(2, [1.0], StopEarly("metric/fid"))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="patience >= 1"):
        StopEarly("metric/given", patience=0)
