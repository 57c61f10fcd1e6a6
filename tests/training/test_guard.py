"""What a turn with a NaN or an infinity does: it stops the run, or is skipped and counted; no weight moves."""

import copy
import functools
import json

import lightning.pytorch as L
import pytest
import torch
from tiny_runs import distillation, fit, mlp, teacher_training, weights

from fdistill.io.checkpoints import read_run_checkpoint
from fdistill.training import NonFiniteError
from fdistill.training.callbacks import LastCheckpoint
from fdistill.training.guard import Check, Guard, TurnValues
from fdistill.training.loggers import JsonlLogger

TERMS = {"loss/a": torch.tensor(1.0), "loss/b": torch.tensor(torch.nan)}
SIGMA = torch.tensor([0.5, 7.0, 0.02, 80.0])


def rows(*broken):
    x = torch.zeros(4, 2, 3)
    x[list(broken)] = torch.inf
    return x


def fault(*values):
    return Check.of(12, TERMS, TurnValues(SIGMA, list(values))).fault()


def test_the_fault_names_term_turn_and_the_noise_levels_of_the_broken_samples():
    beginning = "loss/b became NaN or infinite in turn 12; no weight was changed"
    assert fault(rows(), rows(1), rows(0)) == f"{beginning}; 2 of 4 samples are broken, at sigma 0.5 to 7"
    assert fault(rows()) == f"{beginning}; every sample by itself is finite (sigma 0.02 to 80)"
    assert Check.of(12, TERMS, None).fault() == beginning
    assert Check.of(12, {"loss/a": TERMS["loss/a"]}, None).fault() is None


class Broken(L.Callback):
    """Makes what a network computes at high noise infinite in some turns."""

    def __init__(self, turns, network="fake_score"):
        self.turns, self.network, self.before = turns, network, None

    def on_fit_start(self, trainer, module):
        def spoil(_, inputs, output):
            high = inputs[1] > inputs[1].median()
            return torch.where(high[:, None], torch.inf, output) if trainer.global_step in self.turns else None

        getattr(module, self.network).register_forward_hook(spoil)

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step in self.turns:
            states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]
            self.before = weights(module), states

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step - 1 in self.turns:
            now = weights(module)
            assert [name for name, value in self.before[0].items() if not torch.equal(value, now[name])] == []
            for optimizer, before in zip(trainer.optimizers, self.before[1], strict=True):
                for number, state in optimizer.state_dict()["state"].items():
                    assert all(torch.equal(value, before[number][name]) for name, value in state.items())


CASES = {
    "fused": (lambda **more: distillation(adversarial_weight=0.1, **more), "fake_score"),
    "alternating": (
        lambda **more: distillation(turn="alternating", fake_updates_per_student=1, **more),
        "fake_score",
    ),
    "teacher": (lambda **more: teacher_training(**more), "denoiser"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_stops_and_names_the_noise_levels(case):
    build, network = CASES[case]
    with pytest.raises(NonFiniteError, match="weight"):
        fit(build(), 5, callbacks=[Broken({2}, network)])


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_turn_changes_nothing_but_is_counted_logged_and_said(case, tmp_path, recwarn):
    build, network = CASES[case]
    module = build(skip_nonfinite=2)
    run = fit(module, 8, callbacks=[Broken({2, 3, 5}, network)], logger=JsonlLogger(str(tmp_path)))
    assert run.global_step == 8
    assert (module.guard.skipped, module.guard.in_a_row) == (3, 0)
    assert all(value.isfinite().all() for value in weights(module).values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    counted = [(line["step"], line["guard/skipped_turns"]) for line in lines if "guard/skipped_turns" in line]
    assert counted == [(3, 1), (4, 2), (6, 3)]
    said = [str(warning.message) for warning in recwarn if str(warning.message).startswith("skipped: ")]
    assert len(said) == 3
    assert said[1].endswith("2 turns skipped so far, 2 in a row")


def test_turns_after_a_skipped_one_are_those_of_a_run_that_was_never_asked_to_skip():
    fit(healthy := distillation(), 4)
    fit(ready := distillation(skip_nonfinite=3), 4)
    assert all(torch.equal(value, weights(ready)[name]) for name, value in weights(healthy).items())


def test_more_broken_turns_in_a_row_than_allowed_stop_the_run():
    module = distillation(skip_nonfinite=2)
    with pytest.raises(NonFiniteError, match="turns"):
        fit(module, 8, callbacks=[Broken({2, 3, 4})])
    assert module.guard.skipped == 2


def test_the_counts_go_on_after_a_resume(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(distillation(skip_nonfinite=2), 3, callbacks=[Broken({1, 2})]).save_checkpoint(path)
    with pytest.raises(NonFiniteError, match="turns"):
        fit(module := distillation(skip_nonfinite=2), 8, callbacks=[Broken({3})], resume_from=path)
    assert module.guard.skipped == 2


def test_a_negative_number_of_turns():
    with pytest.raises(ValueError, match="skip_nonfinite"):
        Guard(-1)


def fused(**changes):
    """Fused optimisers, whose check is read one turn later, as on CUDA."""
    adam = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True)
    module = distillation(
        adversarial_weight=0.1, student_optimizer=adam, fake_score_optimizer=adam, student=mlp(seed=1), **changes
    )
    module.checks_later = ("cpu",)
    return module


class Learned(Broken):
    """Leaves the average and the bins out: the run ends, and nothing of the turn is saved."""

    def on_train_batch_start(self, trainer, module, *_):
        super().on_train_batch_start(trainer, module)
        if self.before is not None:
            learned = {
                n: v for n, v in self.before[0].items() if not n.startswith(("ema.", "ratio.ratio", "ratio.count"))
            }
            self.before = learned, self.before[1]


def test_a_later_check_stops_the_run_too_and_no_weight_or_moment_moved(tmp_path):
    module, broken = fused(), Learned({2})
    last = LastCheckpoint(every_n_turns=2)
    run = {"folder": str(tmp_path), "enable_checkpointing": True}
    with pytest.raises(NonFiniteError, match="weight"):
        fit(module, 6, callbacks=[broken, last], **run)
    assert module.trainer.global_step == 3
    now = dict(module.named_parameters())
    same = [torch.equal(value, now[name]) for name, value in broken.before[0].items() if name in now]
    assert len(same) > 10
    assert all(same)
    assert read_run_checkpoint(last.last_model_path)["global_step"] == 2


@pytest.mark.parametrize("turn", [3, 5])
def test_a_broken_turn_whose_check_is_pending_is_not_saved_at_a_checkpoint_or_the_end(turn, tmp_path):
    run = {"folder": str(tmp_path), "enable_checkpointing": True}
    with pytest.raises(NonFiniteError, match=f"in turn {turn}; no weight was changed"):
        fit(fused(), 6, callbacks=[Learned({turn}), last := LastCheckpoint(every_n_turns=2)], **run)
    assert read_run_checkpoint(last.last_model_path)["global_step"] == turn - 1


def test_a_later_check_changes_no_bit_of_a_healthy_run():
    later, at_once = fused(), fused()
    at_once.checks_later = ()
    fit(later, 5)
    fit(at_once, 5)
    assert all(torch.equal(value, weights(at_once)[name]) for name, value in weights(later).items())
