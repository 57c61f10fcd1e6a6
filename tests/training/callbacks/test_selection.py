"""The best checkpoint is the best, and a run stops when nothing improves."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, weights

from fdistill.training.callbacks import BestCheckpoint, LastCheckpoint, StopEarly
from fdistill.training.callbacks.measured import publish

NAME = "metric/given"


class Says(L.Callback):
    """Publishes given values, one every second turn."""

    def __init__(self, values):
        self.values = values

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step % 2 == 0:
            publish(trainer, pl_module, {NAME: self.values[trainer.global_step // 2 - 1]})


def run(turns, values, callback, before=False, folder=None, callbacks=(), **changes):
    """Some turns with the callback after the one that measures, or before it."""
    module, pair = distillation(ema_decay=0.0), [Says(values), callback]
    pair = pair[::-1] if before else pair
    return fit(
        module, turns, callbacks=[*callbacks, *pair], folder=folder, enable_checkpointing=bool(folder), **changes
    ), module


def saved(folder, name="best.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("mode", "best"), [("min", 6), ("max", 4)])
def test_the_best_checkpoint_holds_the_turn_of_the_best_value(tmp_path, mode, best, before):
    values, callback = [3.0, 5.0, 1.0, 2.0, 1.0], BestCheckpoint(NAME, mode)
    run(10, values, callback, before, tmp_path)
    assert saved(tmp_path)["global_step"] == callback.best_turn == best
    assert float(callback.best_model_score) == values[best // 2 - 1]
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]


def test_the_best_checkpoint_holds_the_weights_that_were_measured(tmp_path):
    measured = {}

    class Remember(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            measured[trainer.global_step] = weights(module)

    run(8, [3.0, 1.0, 2.0, 2.0], BestCheckpoint(NAME), folder=tmp_path, callbacks=[Remember()])
    checkpoint = saved(tmp_path)["state_dict"]
    assert all(torch.equal(value, measured[4][name]) for name, value in checkpoint.items())
    assert any(not torch.equal(value, measured[5][name]) for name, value in checkpoint.items())


def test_a_stale_value_saves_nothing_again(tmp_path):
    callback, turns = BestCheckpoint(NAME), []
    write = callback._save_checkpoint
    callback._save_checkpoint = lambda trainer, path: (turns.append(trainer.global_step), write(trainer, path))
    run(9, [3.0, 3.0, 2.0, 4.0], callback, folder=tmp_path)
    assert turns == [2, 6]


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path):
    run(8, [float("nan"), 3.0, float("nan"), float("-inf")], BestCheckpoint(NAME), folder=tmp_path)
    assert saved(tmp_path)["global_step"] == 4


@pytest.mark.parametrize("turns", [3, 4])
def test_a_run_that_continues_from_the_last_checkpoint_keeps_the_best_of_before(tmp_path, turns):
    """Also where the last checkpoint is of the turn of the best one, and is written first."""
    run(turns, [2.0, 1.0], BestCheckpoint(NAME), folder=tmp_path, callbacks=[LastCheckpoint(every_n_turns=2)])
    again, best = BestCheckpoint(NAME), turns // 2 * 2
    last = LastCheckpoint(every_n_turns=2)
    values = [0.0] * (turns // 2) + [3.0] * 4
    run(8, values, again, folder=tmp_path, callbacks=[last], resume_from="last")
    assert (float(again.best_model_score), again.best_turn) == (3.0 - best / 2, best)
    assert saved(tmp_path)["global_step"] == best


def test_a_run_that_was_moved_keeps_the_best_of_before(tmp_path):
    callbacks = [LastCheckpoint(every_n_turns=4)]
    run(4, [1.0, 2.0], BestCheckpoint(NAME), folder=tmp_path / "first", callbacks=callbacks)
    (tmp_path / "first").rename(tmp_path / "second")
    again = {"folder": tmp_path / "second", "resume_from": "last", "callbacks": [LastCheckpoint(every_n_turns=4)]}
    with pytest.warns(UserWarning, match="dirpath"):  # of last.ckpt, to which it makes no difference
        run(8, [0.0, 0.0, 4.0, 3.0], BestCheckpoint(NAME), **again)
    assert saved(tmp_path / "second")["global_step"] == 2


def test_a_run_that_continues_in_another_folder_looks_for_a_best_of_its_own(tmp_path):
    first, _ = run(4, [1.0, 2.0], BestCheckpoint(NAME), folder=tmp_path / "first")
    first.save_checkpoint(tmp_path / "last.ckpt")
    changes = {"folder": tmp_path / "second", "resume_from": str(tmp_path / "last.ckpt")}
    with pytest.warns(UserWarning, match="dirpath"):
        run(8, [0.0, 0.0, 4.0, 3.0], BestCheckpoint(NAME), **changes)
    assert saved(tmp_path / "second")["global_step"] == 8


@pytest.mark.parametrize("before", [False, True])
def test_a_run_stops_after_so_many_measurements_without_improvement(before):
    early = StopEarly(NAME, patience=2)
    trainer, _ = run(20, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.0, 0.0, 0.0, 0.0], early, before)
    assert (early.best, early.best_turn) == (1.0, 8)
    assert trainer.global_step == 12


def test_a_run_that_stops_says_why(caplog):
    with caplog.at_level("INFO"):
        run(20, [3.0, 4.0, 5.0, 0.0], StopEarly(NAME, patience=2))
    assert "metric/given was best at turn 2 (3) and has not improved in 2 measurements" in caplog.text


def test_a_run_whose_metric_is_never_finite_stops_too(caplog):
    with caplog.at_level("INFO"):
        trainer, _ = run(20, [float("nan")] * 10, StopEarly(NAME, patience=3))
    assert trainer.global_step == 6
    assert "metric/given was never finite" in caplog.text


def test_an_improvement_of_no_more_than_min_delta_is_none():
    early = StopEarly(NAME, patience=2, min_delta=0.5, mode="max")
    trainer, _ = run(20, [1.0, 1.25, 1.5, 1.75, 9.0], early)
    assert (early.best, trainer.global_step) == (1.0, 6)


@pytest.mark.parametrize("stopped_at", [4, 5])
def test_a_run_that_continues_goes_on_waiting(tmp_path, stopped_at):
    first, _ = run(stopped_at, [1.0, 2.0], StopEarly(NAME, patience=2), before=True)
    first.save_checkpoint(tmp_path / "last.ckpt")
    changes = {"before": True, "resume_from": str(tmp_path / "last.ckpt")}
    trainer, _ = run(20, [0.0] * 2 + [3.0] * 8, StopEarly(NAME, patience=2), **changes)
    assert trainer.global_step == 6


@pytest.mark.parametrize("build", [StopEarly, BestCheckpoint])
def test_a_metric_that_nobody_measures_is_named_with_those_that_are(tmp_path, build):
    with pytest.warns(UserWarning, match="metric"):
        run(2, [1.0], build("metric/fid"), folder=tmp_path)


@pytest.mark.parametrize(
    "build",
    [
        lambda: StopEarly(NAME, patience=0),
        lambda: StopEarly(NAME, min_delta=-1.0),
        lambda: StopEarly(NAME, min_delta=float("nan")),
        lambda: StopEarly(NAME, mode="least"),
        lambda: BestCheckpoint(NAME, mode="least"),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError, match="got"):
        build()
