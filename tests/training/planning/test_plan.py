"""What a run needs: times are work over rates, memory is what lives."""

import dataclasses

import pytest
import torch
from tiny_runs import distillation, mlp, teacher_training

from fdistill.objectives import DMD2, FDistill
from fdistill.theory.divergences import ReverseKL
from fdistill.training.parallel import ReplicatedStrategy, ShardedStrategy
from fdistill.training.planning import GPUS, Gpu, plan_run, ring_seconds, turns_of_run
from fdistill.training.planning.turn_kinds import TurnKind, kind_of

pytestmark = pytest.mark.system  # seconds, too many for make check

SLOW = Gpu(bf16=2e9, tf32=1e9, fp32=1e8, memory=1e9, bandwidth=1e9, link=1e6)


def alternating(**changes):
    return distillation(mlp(), DMD2(), **{"turn": "alternating", "fake_updates_per_student": 2} | changes)


@pytest.mark.parametrize("changes", [{"turn": "fused"}, {"fake_updates_per_student": 1}, {}], ids=str)
@pytest.mark.parametrize("warmup", [0, 4])
def test_kinds_of_turn_are_those_that_a_walk_over_all_turns_finds(changes, warmup):
    module = alternating(fake_score_warmup=warmup, **changes)
    for turns in range(1, 24):
        walked = {}
        for turn in range(turns):
            walked.setdefault(kind_of(module, turn), []).append(turn)
        expected = {name: TurnKind(len(found), found[len(found) // 2]) for name, found in walked.items()}
        assert turns_of_run(module, turns) == expected


def test_days_are_turns_of_each_kind_times_their_bound():
    made = plan_run(alternating(), 8, 301, SLOW)
    assert {name: turn.count for name, turn in made.turns.items()} == {"student": 100, "fake": 201}
    assert made.updates == 100
    assert made.days * 86_400 == pytest.approx(sum(turn.count * turn.bound for turn in made.turns.values()))


def test_compute_is_flops_over_the_reached_rate():
    turns = [plan_run(alternating(), 8, 3, SLOW, arithmetic=kind, mfu=0.5).turns["fake"] for kind in ("bf16", "fp32")]
    assert turns[0].compute == turns[0].flops / 1e9
    assert turns[1].compute == 20 * turns[0].compute


def test_only_what_learns_is_averaged_and_only_with_others():
    module = alternating()
    size = {
        name: sum(p.nbytes for p in getattr(module, name).parameters()) for name in ("student", "fake_score", "ratio")
    }
    alone, four = (plan_run(module, 8, 3, SLOW, devices=n).turns for n in (1, 4))
    assert alone["student"].all_reduce_bytes == alone["student"].communication == 0
    assert four["student"].all_reduce_bytes == size["student"]
    assert four["fake"].all_reduce_bytes == size["fake_score"] + size["ratio"]
    assert four["fake"].communication == pytest.approx(1.5 * four["fake"].all_reduce_bytes / SLOW.link)
    assert four["fake"].bound == four["fake"].communication < four["fake"].in_sequence


def test_a_ring_sends_nothing_alone_and_at_most_twice_the_bytes():
    assert ring_seconds(1e9, 1, 1e9) == 0
    assert ring_seconds(1e9, 2, 1e9) == 1
    assert 1.99 < ring_seconds(1e9, 1000, 1e9) < 2


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [(torch.optim.SGD, 0), (torch.optim.Adam, 2), (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), 1)],
)
def test_memory_of_a_run_is_its_tensors(optimizer, states):
    module = distillation(mlp(), FDistill(ReverseKL()), student_optimizer=optimizer, fake_score_optimizer=optimizer)
    made = plan_run(module, 8, 3, SLOW)
    size = sum(p.nbytes for p in module.student.parameters())
    assert made.memory["optimiser states"] == 2 * states * size
    assert made.memory["weights of ema"] == made.memory["weights of teacher"] >= size
    assert made.memory["turn (activations, gradients)"] > 2 * size  # two gradients at least
    assert made.memory_bytes == sum(made.memory.values())


def test_half_precision_halves_what_a_turn_keeps_beside_gradients():
    full, half = (plan_run(alternating(), 4096, 3, SLOW, mixed=mixed).memory for mixed in (False, True))
    turn = "turn (activations, gradients)"
    assert 0.5 < half[turn] / full[turn] < 0.51
    assert {**full, turn: 0} == {**half, turn: 0}


def test_teacher_training_has_one_kind_of_turn():
    made = plan_run(teacher_training(), 8, 10, SLOW)
    assert list(made.turns) == ["teacher"]
    assert made.updates == 10
    assert set(made.parameters) == {"teacher", "ema"}


@pytest.mark.parametrize("turns", [1, 2, 3, 10, 11])
@pytest.mark.parametrize(
    "changes", [{}, {"fake_score_warmup": 2}, {"turn": "fused"}, {"turn": "fused", "fake_score_warmup": 2}]
)
def test_kinds_of_turns_are_those_of_the_schedule(turns, changes):
    schedule = (module := alternating(**changes)).turn_schedule
    learns = [schedule.learners(turn) for turn in range(turns)]
    kinds = turns_of_run(module, turns)
    assert {name: kind.count for name, kind in kinds.items()} == {
        name: learns.count(sides)
        for name, sides in {"fused": (True, True), "student": (True, False), "fake": (False, True)}.items()
        if sides in learns
    }
    for name, kind in kinds.items():
        assert (
            schedule.learners(kind.example)
            == {"fused": (True, True), "student": (True, False), "fake": (False, True)}[name]
        )


def test_tables_are_in_their_units_and_ordered():
    for gpu in GPUS.values():
        assert gpu.bf16 > gpu.tf32 >= gpu.fp32 > 1e13
        assert 2e10 < gpu.memory < 1e12
        assert gpu.link < gpu.bandwidth < 1e13


def test_rates_scale_times_and_nothing_else():
    fast = Gpu(*[2 * rate for rate in SLOW])
    one, two = (plan_run(alternating(), 8, 30, gpu, devices=4) for gpu in (SLOW, fast))
    assert two.days == pytest.approx(one.days / 2)
    assert dataclasses.replace(one, turns={}) == dataclasses.replace(two, turns={})


@pytest.mark.parametrize(
    ("changes", "named"), [({"mfu": 0.0}, "mfu"), ({"mfu": 1.1}, "mfu"), ({"devices": 0}, "device")]
)
def test_impossible_numbers_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        plan_run(alternating(), 8, 3, SLOW, **changes)


def planned(strategy, devices=4, **changes):
    module = distillation(mlp(), DMD2(), turn="fused", **changes)
    return plan_run(module, 8, 3, SLOW, devices=devices, strategy=strategy), module


def test_sharding_divides_the_networks_among_the_devices_and_nothing_else():
    (whole, module), (parts, _) = planned(ReplicatedStrategy()), planned(ShardedStrategy())
    for role in ("teacher", "student", "fake_score", "ema"):
        name = f"weights of {role}"
        assert whole.memory[name] / 4 <= parts.memory[name] < whole.memory[name] / 4 + 1
    assert parts.memory["weights of discriminator"] == whole.memory["weights of discriminator"]
    block = sum(p.nbytes for p in module.student.network.blocks[0].parameters())
    everything = sum(p.nbytes for p in module.student.parameters())
    assert parts.memory["blocks gathered"] == everything - 2 * block + 2 * block + block  # and a block's gradient
    assert parts.on_cpu == {}
    assert parts.memory_bytes < whole.memory_bytes
    assert parts.turns["fused"].flops == whole.turns["fused"].flops
    assert parts.turns["fused"].communication > whole.turns["fused"].communication  # gathered twice, reduced once
    kept, _ = planned(ShardedStrategy(shard_teacher=False))
    assert kept.memory["weights of teacher"] == whole.memory["weights of teacher"]


def test_what_is_offloaded_lies_on_the_cpu():
    (parts, _), (moved, _) = planned(ShardedStrategy()), planned(ShardedStrategy(cpu_offload=True))
    for role in ("teacher", "student", "fake_score", "ema"):
        assert moved.on_cpu[f"weights of {role}"] == parts.memory[f"weights of {role}"]
        assert f"weights of {role}" not in moved.memory
    states = moved.memory["optimiser states"] + moved.on_cpu["optimiser states"]
    assert states == parts.memory["optimiser states"]
    turn = "turn (activations, gradients)"
    assert moved.memory[turn] + moved.on_cpu["gradients"] == parts.memory[turn]


def test_what_learns_is_gathered_in_bf16_under_bf16_mixed():
    module = distillation(mlp(), DMD2(), turn="fused")
    sent = {
        mixed: plan_run(module, 8, 3, SLOW, devices=4, mixed=mixed, strategy=ShardedStrategy()).turns["fused"]
        for mixed in (False, True)
    }
    plain = plan_run(module, 8, 3, SLOW, devices=4).turns["fused"]
    networks = sum(p.nbytes for net in (module.student, module.fake_score) for p in net.parameters())
    assert sent[False].communication - plain.communication == pytest.approx(ring_seconds(networks / 2, 4, SLOW.link))
    assert sent[True].communication == pytest.approx(plain.communication)
