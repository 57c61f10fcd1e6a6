"""Two ranks that tune a teacher share their advantages: each sample is compared with those of both."""

import os

import pytest
import torch
import torch.distributed as dist
from forked import ended, fork_ranks
from places import two_places
from tiny_runs import adam, distillation, fit, mlp, ring, weights
from torch.testing import assert_close

from fdistill.evaluation.features import PixelFeatures
from fdistill.objectives import DMD2, TiltedTeacher
from fdistill.objectives.advantages import group_advantages
from fdistill.objectives.reward_algorithms import DDPO, FlowGRPO
from fdistill.objectives.rewards import TargetReward
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule
from fdistill.training.callbacks import RewardGap


class Watched(RewardTuningModule):
    """Writes down what it compared, and whether rank 1's reward fails is said on rank 0 too."""

    def _judge(self, rollout, condition, batch_size):
        advantage, seen = super()._judge(rollout, condition, batch_size)
        self.judged = {
            "rewards": self.reward(rollout.samples),
            "keys": condition["labels"].repeat_interleave(self.algorithm.group),
            "advantage": advantage,
        }
        return advantage, seen


class BrokenOnRank1(TargetReward):
    def forward(self, x, condition=None):
        return super().forward(x) * (float("nan") if dist.get_rank() else 1.0)


class RaisesOnRank1(TargetReward):
    def forward(self, x, condition=None):
        if dist.get_rank():
            raise KeyError("prompt")
        return super().forward(x)


def message_of(run):
    with pytest.raises(ValueError, match="the reward") as error:
        run()
    return str(error.value)


def tilted(reward):
    return distillation(mlp(), TiltedTeacher(DMD2(0.0, "sigma"), reward, 0.1))


def tuned(algorithm, reward):
    return Watched(mlp(num_classes=2), reward, algorithm, adam, KarrasGrid(4, 0.05, 10.0))


def watching():
    return RewardGap(1, (2, 3), seeds=9, teacher_draws=2, spaces={"x": PixelFeatures()})


def main(folder):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    run = {"strategy": "replicated", "devices": 2}
    with two_places():
        module = tuned(FlowGRPO(group=3), TargetReward(1.0))
        gap = watching()
        fit(module, 2, ring(batch_size=8), callbacks=[gap], **run)
        running = tuned(DDPO(group=1), TargetReward(1.0))
        fit(running, 3, ring(batch_size=8), **run)
        said = [
            message_of(lambda: fit(tuned(FlowGRPO(group=3), BrokenOnRank1(1.0)), 1, ring(batch_size=8), **run)),
            message_of(
                lambda: fit(tuned(FlowGRPO(group=3), BrokenOnRank1(1.0)), 1, ring(8), callbacks=[watching()], **run)
            ),
            message_of(lambda: fit(tilted(RaisesOnRank1(1.0)), 1, ring(batch_size=8), **run)),
        ]
    results = {
        "judged": module.judged,
        "weights": weights(module.denoiser),
        "statistics": running._advantages.state_dict(),
        "said": said,
        "untuned": gap.state_dict()["teacher"],
    }
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_advantages_statistics_failures_and_the_gap_are_shared(tmp_path):
    codes = ended(fork_ranks(lambda rank: main(tmp_path), tmp_path), 120)
    assert codes == [0, 0], "\n".join((tmp_path / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    judged = {name: torch.cat([rank["judged"][name] for rank in ranks]) for name in ranks[0]["judged"]}
    assert not torch.equal(*[rank["judged"]["rewards"] for rank in ranks])
    assert_close(judged["advantage"], group_advantages(judged["rewards"], judged["keys"]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, ranks[1]["weights"][name]) for name, value in ranks[0]["weights"].items())
    assert ranks[0]["statistics"] == ranks[1]["statistics"]
    assert sum(map(len, ranks[0]["statistics"].values())) == 32  # the last 16 of each class, of 48 samples
    assert ranks[0]["said"] == ranks[1]["said"]  # of a rollout, of a measured gap, of a tilted teacher
    assert ["BrokenOnRank1" in one for one in ranks[0]["said"]] == [True, True, False]
    assert "RaisesOnRank1 raised KeyError" in ranks[0]["said"][2]
    alone = watching()
    fit(tuned(FlowGRPO(group=3), TargetReward(1.0)), 1, ring(batch_size=8), callbacks=[alone])
    for mine, first, second in zip(alone.state_dict()["teacher"], *(rank["untuned"] for rank in ranks), strict=True):
        assert_close(first["scores"], mine["scores"])
        assert first["values"] == second["values"] == pytest.approx(mine["values"])
