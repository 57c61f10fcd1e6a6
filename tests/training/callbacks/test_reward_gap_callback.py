"""The reward gap while a teacher is tuned: what is logged and when, resuming, the alarm's action, bad input."""

import pytest
import torch
from test_callbacks import Memory
from tiny_runs import adam, fit, mlp, ring, teacher_training, weights

from fdistill.core.random import fold_seed
from fdistill.data import LatentsOnly
from fdistill.evaluation.features import PixelFeatures
from fdistill.evaluation.reward_gap import Gap
from fdistill.evaluation.reward_hacking import HackingAlarm, HackingVerdict
from fdistill.objectives.reward_algorithms import DiffusionNFT, FlowGRPO
from fdistill.objectives.rewards import TargetReward
from fdistill.sampling import GDDIM, generate
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule
from fdistill.training.callbacks import RewardGap


def tuning(algorithm=None, optimizer=adam):
    reward, grid = TargetReward([1.0, -1.0]), KarrasGrid(4, 0.05, 10.0)
    return RewardTuningModule(mlp(num_classes=2), reward, algorithm or FlowGRPO(group=4), optimizer, grid)


def gap(**changes):
    arguments = {"every_n_turns": 2, "steps": (2, 3), "seeds": 8, "teacher_draws": 2, "spaces": {"x": PixelFeatures()}}
    return RewardGap(**arguments | changes)


def run(turns, callback, module=None, **changes):
    module, memory = module or tuning(), Memory()
    trainer = fit(module, turns, ring(batch_size=8), logger=memory, callbacks=[callback], **changes)
    return module, memory, trainer


def test_the_gap_is_of_the_same_latents_and_logged_before_and_on_schedule():
    callback = gap()
    module, memory, _ = run(4, callback)
    for name in ("gap/2/TargetReward", "gap/3/deterministic/recall", "gap/3/stochastic/condition_vendi"):
        assert list(memory.of(name)) == [0, 2, 4]
    assert list(memory.of("hacking/alarm")) == [2, 4]
    model = module.generative_model()
    latents = model.noise(16, fold_seed(0, 0))
    labels = torch.arange(2).repeat_interleave(8)
    made = [
        module.reward(generate(GDDIM(eta), model.denoiser, latents, KarrasGrid(3, 0.05, 10.0).levels(), labels))
        for eta in (1.2, 0.0)
    ]
    expected = Gap.of(*made)
    assert memory.of("gap/3/TargetReward")[4] == pytest.approx(expected.mean, rel=1e-4)
    assert memory.of("gap/3/TargetReward_low")[4] == pytest.approx(expected.low, rel=1e-4)


def test_looking_leaves_the_tuning_as_it_is():
    plain, watched = tuning(), run(3, gap(every_n_turns=1))[0]
    fit(plain, 3, ring(batch_size=8))
    before, after = weights(plain), weights(watched)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


def test_a_resumed_run_judges_by_the_untuned_teacher(tmp_path):
    _, whole, _ = run(4, gap())
    run(2, gap())[2].save_checkpoint(tmp_path / "two.ckpt")
    _, memory, _ = run(4, gap(), resume_from=str(tmp_path / "two.ckpt"))
    assert list(memory.of("hacking/climb")) == [4]
    assert memory.of("hacking/climb")[4] == whole.of("hacking/climb")[4]
    assert memory.of("hacking/margin/recall")[4] == whole.of("hacking/margin/recall")[4]


@pytest.mark.parametrize(("action", "end"), [("warn", 6), ("stop", 4)])
def test_an_alarm_acts_as_it_was_told(action, end, monkeypatch):
    def update(self, look, climb, turn):
        return HackingVerdict(turn >= 4, {"climb": climb.mean}, "recall fell")

    monkeypatch.setattr(HackingAlarm, "update", update)
    with pytest.warns(UserWarning, match="recall"):
        _, _, trainer = run(6, gap(action=action))
    assert trainer.global_step == end


def test_a_teacher_that_stands_still_has_no_climb():
    _, memory, _ = run(2, gap(), tuning(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)))
    assert memory.of("hacking/climb") == {2: 0.0}
    assert memory.of("hacking/alarm") == {2: 0.0}


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"steps": (0,)}, "steps"), ({"steps": ()}, "steps"), ({"eta": 0.0}, "eta"), ({"action": "lower"}, "action")],
)
def test_impossible_arguments_are_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        RewardGap(**changes)


def test_runs_that_it_cannot_measure_are_refused_before_the_first_turn(tmp_path):
    with pytest.raises(ValueError, match="RewardTuningModule"):
        fit(teacher_training(), 1, callbacks=[gap()])
    with pytest.raises(ValueError, match="training samples"):
        fit(tuning(), 1, LatentsOnly([2], 2, batch_size=8), callbacks=[gap()])
    with pytest.raises(ValueError, match="DiffusionNFT"):
        run(1, gap(), tuning(DiffusionNFT(group=4)))
    with pytest.raises(ValueError, match="fewer seeds"):
        run(1, gap(seeds=10**6))
    fit(tuning(), 1, ring(batch_size=8)).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="turn 0"):
        run(2, gap(), resume_from=str(tmp_path / "one.ckpt"))
    run(1, gap())[2].save_checkpoint(tmp_path / "watched.ckpt")
    with pytest.raises(ValueError, match="seeds of before"):
        run(2, gap(seeds=9), resume_from=str(tmp_path / "watched.ckpt"))
