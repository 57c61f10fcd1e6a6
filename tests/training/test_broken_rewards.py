"""A reward that is broken is named with its turn, and one that has nothing to read is refused before the run."""

import pytest
import torch
from tiny_runs import adam, distillation, fit, mlp, ring

from fdistill.core import distributed
from fdistill.core.distributed import together
from fdistill.objectives import DMD2, RewardAugmented, TiltedTeacher
from fdistill.objectives.image_rewards import Brightness, RewardSum
from fdistill.objectives.prompt_rewards import CaptionReward
from fdistill.objectives.reward_algorithms import FlowGRPO
from fdistill.objectives.rewards import ClassifierReward, TargetReward
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import NonFiniteError, RewardTuningModule
from fdistill.training.best_of import best_of


class BrokenLater(TargetReward):
    """NaN from its third call on."""

    calls = 0

    def forward(self, x, condition=None):
        self.calls += 1
        return super().forward(x) * (torch.nan if self.calls > 2 else 1.0)


@pytest.mark.parametrize("way", [TiltedTeacher, RewardAugmented])
def test_a_nan_of_a_student_s_reward_is_told_as_such_with_its_turn(way):
    module = distillation(mlp(), way(DMD2(0.0, "sigma"), BrokenLater(1.0), 0.1))
    with pytest.raises(NonFiniteError, match=r"loss/reward.* in turn 2"):
        fit(module, 4, ring(batch_size=8))


UNREADABLE = {
    "classes": (lambda: ClassifierReward(), mlp(), "takes classes, got one of no condition"),
    "prompts": (lambda: CaptionReward(), mlp(num_classes=2), "takes prompts, got one of labels"),
    "a part": (lambda: RewardSum([Brightness(), ClassifierReward()]), mlp(), "takes classes"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_reward_of_what_the_network_does_not_take_is_refused_before_anything_is_fitted(name):
    build, network, words = UNREADABLE[name]
    grid, model = KarrasGrid(4, 0.05, 10.0), GenerativeModel.teacher(network, 4, 0.05, 10.0)
    ways = (
        lambda: RewardTuningModule(network, build(), FlowGRPO(), adam, grid),
        lambda: distillation(network, RewardAugmented(DMD2(0.0), build(), 0.1)),
        lambda: best_of(model, 2, 2, build()),
    )
    for way in ways:
        with pytest.raises(ValueError, match=words) as error:
            way()
        assert "\n" not in str(error.value)


def test_an_error_of_another_rank_is_raised_here_too(monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, "the reward of rank 1"])
    with pytest.raises(ValueError, match="the reward of rank 1"):
        together(lambda: 1)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine])
    assert together(lambda: 1) == 1
