"""Plans of reward tuning: a part of a turn is made, and stands for the whole one."""

import itertools

import pytest
import torch
from cases import slow_but
from test_dry_turn import CountedTurns, denoiser, images, time_of
from test_plan import SLOW
from tiny_runs import adam, fit, mlp
from torch.profiler import ProfilerActivity, profile

from fdistill.data import Batch
from fdistill.io.load import load_model
from fdistill.models.condition import Condition
from fdistill.objectives.image_rewards import Brightness
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO, MixGRPO
from fdistill.sampling.generator import GenerativeModel
from fdistill.training import RewardTuningModule
from fdistill.training.planning import dry_turn, forward_flops, plan_run
from fdistill.training.planning.dry_turn import _Dry
from fdistill.training.roles import SharedBase

pytestmark = pytest.mark.system  # seconds, too many for make check

ALL = SharedBase(rank=2, targets="all")
RUNS = {
    "Flow-GRPO, divergence": (lambda: FlowGRPO(group=6, kl_weight=0.1), {}),
    "DDPO, three updates": (lambda: DDPO(group=4, updates=3), {"roles": ALL}),
    "MixGRPO": (lambda: MixGRPO(group=4, window=2), {}),
    "DiffusionNFT, guided": (lambda: DiffusionNFT(group=4, draws=3), {"guidance": 2.0}),
    "DiffusionNFT, adapters": (lambda: DiffusionNFT(group=4, kl_weight=0.1), {"roles": ALL}),
}


def tuning(algorithm, teacher=None, guidance=1.0, at_once=8, steps=4, **changes):
    model = GenerativeModel.teacher(teacher or denoiser(), steps, 0.05, 10.0, guidance=guidance)
    return RewardTuningModule(model, Brightness(), algorithm, adam, at_once=at_once, **changes).train()


@pytest.mark.parametrize("name", slow_but(RUNS, [*RUNS][1]))
def test_a_part_of_a_turn_costs_what_whole_ones_do(name):
    build, changes = RUNS[name]
    module, counted = tuning(build(), **changes), CountedTurns()
    cost = dry_turn(module, 4, 0)
    fit(module, 1, images(module.denoiser), callbacks=[counted])
    assert counted.flops == [cost.flops]
    assert cost.updates == module.algorithm.updates


@pytest.mark.slow
@pytest.mark.parametrize("roles", [None, ALL])
def test_memory_of_the_digits_teacher_is_that_of_a_real_turn(roles):
    """Of torch's allocator, within 10%: on the CPU it holds the states of the rollout, too."""
    teacher = load_model("digits-teacher").denoiser
    module = tuning(FlowGRPO(group=4), teacher, at_once=8, steps=3, roles=roles)
    real = type("Real", (_Dry, RewardTuningModule), {"dry_turn": 0})
    cost, module.__class__ = dry_turn(module, 3, 0), real
    labels = torch.arange(3)
    batch = Batch(torch.zeros(3, *teacher.sample_shape), labels, Condition({"labels": labels}))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        module.training_step(batch, 0)
    events = sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=time_of)
    most = max(itertools.accumulate(event.nbytes() for event in events))
    assert cost.peak_bytes + cost.host_bytes == pytest.approx(most, rel=0.1)


def test_a_turn_is_forward_passes_of_all_samples():
    """Each step one, each pair of the K stochastic steps three: less the gradient of the input."""
    module = tuning(FlowGRPO(group=2, kl_weight=0.0), denoiser((16, 32)), steps=5)
    forward, _ = forward_flops(module.denoiser, 8)
    assert dry_turn(module, 4, 0).flops / forward == pytest.approx(5 + 3 * 4, rel=0.02)


def test_states_of_a_rollout_lie_on_the_host():
    """K + 1 of each sample in float32; none where all steps are deterministic."""
    for algorithm, states in ((FlowGRPO(group=6), 4), (MixGRPO(group=6, window=2), 3), (DiffusionNFT(group=6), 0)):
        assert dry_turn(tuning(algorithm, mlp(num_classes=2)), 4, 0).host_bytes == states * 24 * 2 * 4
    assert planned(FlowGRPO(group=6)).on_cpu == {"states of a rollout": 4 * 24 * 2 * 4}


def planned(algorithm, **changes):
    return plan_run(tuning(algorithm, mlp(num_classes=2), **changes), 4, 3, SLOW, devices=2)


def test_networks_of_a_plan_are_those_of_the_run():
    size = sum(p.nbytes for p in mlp(num_classes=2).parameters())
    full = planned(FlowGRPO(group=2, kl_weight=0.1)).memory
    assert full["weights of policy"] == full["weights of reference"] == full["weights of ema"]
    assert full["optimiser states"] == 2 * size
    assert "weights of reference" not in planned(FlowGRPO(group=2, kl_weight=0.0)).memory
    shared = planned(DiffusionNFT(group=2), roles=ALL).memory
    assert shared["weights of reference"] == full["weights of reference"]
    factors = shared["weights of policy"]
    assert factors == shared["weights of ema"] == shared["weights of old policy"] < full["weights of policy"]
    assert shared["optimiser states"] == 2 * factors


def test_each_update_of_a_rollout_steps_and_averages():
    one, three = (planned(DDPO(group=4, updates=n)).turns["tuning"] for n in (1, 3))
    assert three.all_reduce_bytes == 3 * one.all_reduce_bytes
    assert three.communication == pytest.approx(3 * one.communication)
    assert one.stepping < three.stepping < 3 * one.stepping  # the average moves once
    assert three.flops == pytest.approx(one.flops, rel=1e-3)
