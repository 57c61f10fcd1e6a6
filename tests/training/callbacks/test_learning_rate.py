"""The rate of every group follows the schedule, also through a resume."""

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, teacher_training, weights

from fdistill.theory.schedules import Linear, Steps
from fdistill.training.callbacks import BestCheckpoint, CollapseCallback, LastCheckpoint, LearningRate, StopEarly
from fdistill.training.callbacks.measured import publish


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
    with pytest.raises(ValueError, match="factor"):
        fit(distillation(), 1, callbacks=[LearningRate(Steps([-1.0, 1.0], [5]))])


class Alarmed(CollapseCallback):
    """Acts at the end of turn 2, whatever was measured."""

    def setup(self, *args, **stage):
        pass

    def on_measured(self, *args):
        pass

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            self._act(trainer)


def composed(order, kinds):
    """Callbacks of some kinds in an order, and what writes the rates down."""
    made = {
        "alarm": lambda: Alarmed(action="lower_learning_rate", factor=0.5),
        "ramp": lambda: LearningRate(Linear(1.0, 0.0, updates=8)),
        "steps": lambda: LearningRate(Steps([1.0, 0.1], [3])),
    }
    chosen = [made[kind]() for kind in kinds]
    rates = Rates()  # first: what a turn used, before the alarm at its end
    return [rates, *(chosen if order == "as listed" else chosen[::-1])], rates


PAIRS = {
    ("alarm", "ramp"): [1, 7 / 8, 6 / 16, 5 / 16],
    ("alarm", "steps"): [1, 1, 0.5, 0.05],
    ("ramp", "steps"): [1, 7 / 8, 6 / 8, 5 / 80],
    ("alarm",): [1, 1, 0.5, 0.5],
}


@pytest.mark.parametrize("order", ["as listed", "reversed"])
@pytest.mark.parametrize("kinds", PAIRS)
def test_what_acts_on_the_rate_multiplies_in_any_order(kinds, order):
    callbacks, rates = composed(order, kinds)
    fit(distillation(discriminator_lr=0.5), 4, callbacks=callbacks)
    seen = [[rate / base for rate, base in zip(turn, (0.01, 0.01, 0.5), strict=True)] for turn in rates.seen]
    assert seen == [[pytest.approx(factor)] * 3 for factor in PAIRS[kinds]]


@pytest.mark.parametrize("order", ["as listed", "reversed"])
def test_a_reduction_under_a_schedule_survives_a_resume(order, tmp_path):
    first, _ = composed(order, ("alarm", "ramp"))
    fit(teacher_training(), 3, callbacks=first).save_checkpoint(tmp_path / "half.ckpt")
    again, _ = composed(order, ("alarm", "ramp"))
    fit(continued := teacher_training(), 6, callbacks=again, resume_from=tmp_path / "half.ckpt")
    straight, _ = composed(order, ("alarm", "ramp"))
    fit(whole := teacher_training(), 6, callbacks=straight)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(continued).items())


class Measures(L.Callback):
    """Publishes a number after every turn."""

    def __init__(self, values):
        self.values = values

    def on_train_batch_end(self, trainer, module, *_):
        publish(trainer, module, {"metric/x": self.values[trainer.global_step - 1]})


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_of_two_that_stop_the_run_stops_it(order):
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    stopping = [Alarmed(action="stop"), StopEarly("metric/x")][::order]
    assert fit(distillation(), 5, callbacks=[Measures(values), *stopping]).global_step == 2
    early = [StopEarly("metric/x"), StopEarly("metric/x", mode="max")][::order]
    early[0].load_state_dict({"turns": [0] * 22, "values": [*range(18, 0, -1), 20.0, 20.0, 20.0, 20.0]})
    assert fit(distillation(), 5, callbacks=[Measures([20.0] * 5), *early]).global_step == 1


@pytest.mark.parametrize("order", [1, -1])
def test_best_and_last_checkpoint_of_a_turn_agree_in_any_order(order, tmp_path):
    kept = [BestCheckpoint("metric/x"), LastCheckpoint(2)][::order]
    values = [3.0, 1.0, 2.0, 0.5]
    callbacks = {"callbacks": [*kept, Measures(values)], "enable_checkpointing": True}
    fit(distillation(), 4, default_root_dir=tmp_path, **callbacks)
    states = {}
    for file in sorted(tmp_path.rglob("*.ckpt")):
        checkpoint = torch.load(file, weights_only=True)
        best = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("BestCheckpoint"))
        states[file.stem] = (checkpoint["global_step"], best["best_turn"], float(best["best_model_score"]))
    assert states == {"best": (4, 4, 0.5), "last": (4, 4, 0.5)}
