"""The best checkpoint is the best, and a run stops when nothing improves."""

from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, weights

from fdistill.evaluation.stop_rule import why_stop
from fdistill.training.callbacks import BestCheckpoint, LastCheckpoint, StopEarly
from fdistill.training.callbacks.measured import publish

NAME = "metric/given"


class Says(L.Callback):
    """Publishes given values, one every second turn unless told otherwise."""

    def __init__(self, values, every=2):
        self.values, self.every = values, every

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step % self.every == 0:
            publish(trainer, pl_module, {NAME: self.values[trainer.global_step // self.every - 1]})


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


FALLS, RISES = [30.0 - n for n in range(18)], [20.0 + n for n in range(12)]  # best at measurement 18, stops at 23


def stopped_after(early, values, start=0):
    """At which measurement it asks for the end, or None; without a run."""
    for n in range(start + 1, len(values) + 1):
        trainer = SimpleNamespace(global_step=10 * n, should_stop=False)
        early.on_value(trainer, values[n - 1])
        if trainer.should_stop:
            return n
    return None


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_a_run_stops_where_the_rule_says(mode, sign):
    values, early = [sign * v for v in FALLS + RISES], StopEarly(NAME, mode)
    assert stopped_after(early, values) == 23
    assert why_stop(values[:23], 5, mode == "min")
    assert not why_stop(values[:22], 5, mode == "min")
    assert (early.turns, early.values) == ([10 * n for n in range(1, 24)], values[:23])


def test_a_run_whose_metric_is_never_finite_stops_too(caplog):
    with caplog.at_level("INFO"):
        assert stopped_after(StopEarly(NAME), [float("nan")] * 30) == 20
    assert "metric/given was never finite" in caplog.text


def test_one_that_continues_stops_where_an_uninterrupted_one_does():
    first, again = StopEarly(NAME), StopEarly(NAME)
    stopped_after(first, FALLS)
    again.load_state_dict(first.state_dict())
    assert stopped_after(again, FALLS + RISES, start=18) == 23


def test_a_window_that_was_widened_judges_what_was_seen_before():
    first, again = StopEarly(NAME), StopEarly(NAME, window=6)
    stopped_after(first, FALLS + RISES)
    again.load_state_dict(first.state_dict())
    assert stopped_after(again, FALLS + RISES, start=23) == 24


@pytest.mark.parametrize("before", [False, True])
def test_a_stopped_run_has_saved_its_last_and_best_and_says_why_also_where_it_is_continued(tmp_path, caplog, before):
    def train(resume_from=None):
        module, early = distillation(ema_decay=0.0), StopEarly(NAME)
        pair = [Says(FALLS + RISES, every=1), early][:: -1 if before else 1]
        kept = [LastCheckpoint(every_n_turns=1000), BestCheckpoint(NAME)]
        where = {"folder": tmp_path, "enable_checkpointing": True, "resume_from": resume_from}
        return fit(module, 30, callbacks=[*kept, *pair], **where).global_step

    with caplog.at_level("INFO"):
        assert train() == 23
    assert (saved(tmp_path, "last.ckpt")["global_step"], saved(tmp_path)["global_step"]) == (23, 18)
    expected = "metric/given was best at turn 18 (13); the last 5 measurements are worse than the best 5 in a row"
    assert f"{expected}; the run stops at turn 23" in caplog.text
    if before:
        with caplog.at_level("INFO"):
            assert train("last") == 24
        assert "had stopped this run: the last 5 measurements are worse" in caplog.text


def test_too_few_measurements_are_told():
    with pytest.warns(UserWarning, match="expected at least 20 measurements of metric/given, got 1"):
        run(2, [1.0], StopEarly(NAME))


@pytest.mark.parametrize("build", [StopEarly, BestCheckpoint])
def test_a_metric_that_nobody_measures_is_named_with_those_that_are(tmp_path, build):
    with pytest.warns(UserWarning, match="metric"):
        run(2, [1.0], build("metric/fid"), folder=tmp_path)


@pytest.mark.parametrize(
    "build",
    [
        lambda: StopEarly(NAME, window=4),
        lambda: StopEarly(NAME, mode="least"),
        lambda: BestCheckpoint(NAME, mode="least"),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError, match="got"):
        build()
