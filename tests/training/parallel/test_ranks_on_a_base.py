"""Three roles on one base learn on two ranks what separate networks learn there, whole or in parts."""

import pytest
import torch
from forked import ended, fork_ranks
from shared_roles import KEEPS, chain_rule_error, doubled, moved, separate
from tiny_runs import distillation, fit, mlp, ring, weights

from fdistill.core.distributed import whole
from fdistill.models.adapters import adapter_parameters, shares
from fdistill.objectives import SiDA
from fdistill.training.roles import SharedBase


def shared(**changes):
    return distillation(mlp(), adversarial_weight=0.1, roles=SharedBase(2, targets="all"), **changes)


def proves(strategy):
    """In float64: SiDA differentiates the fake score, and the discriminator reads it."""

    def build(teacher=None, **changes):
        return distillation(teacher or mlp(), SiDA(0.1), discriminator="fake_score", **KEEPS | changes)

    torch.set_default_dtype(torch.float64)
    one = moved(doubled(build(roles=SharedBase(2, 3.0, "all"))))
    base = weights(one.teacher)
    other = separate(one, build)
    for module in (one, other):
        fit(module, 1, ring(batch_size=8), strategy=strategy, devices=2)
    assert chain_rule_error(one, other) <= 1e-10
    assert all(torch.equal(whole(value), base[name]) for name, value in weights(one.teacher).items())
    torch.set_default_dtype(torch.float32)


def continues(strategy, folder, **changes):
    """From numbers on rank 0 alone, with a checkpoint after two turns of four."""
    half, uninterrupted, resumed = (shared(meta_start=True, **changes) for _ in range(3))
    path = folder / f"{strategy}.ckpt"
    fit(half, 2, strategy=strategy, devices=2).save_checkpoint(path)
    fit(uninterrupted, 4, strategy=strategy, devices=2)
    if strategy == "replicated":
        assert all(shares(net, uninterrupted.teacher) for net in (uninterrupted.student, uninterrupted.ema.average))
    fit(resumed, 4, strategy=strategy, devices=2, resume_from=path)
    for one, other in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(whole(one), whole(other))
    assert all(whole(factor).abs().max() > 0 for factor in adapter_parameters(resumed.student))


@pytest.mark.parametrize("strategy", ["replicated", "sharded"])
def test_two_ranks_learn_as_separate_networks_do_and_continue_bit_for_bit(strategy, tmp_path):
    def work(rank):
        proves(strategy)
        continues(strategy, tmp_path, teacher_dtype="bfloat16")

    assert ended(fork_ranks(work, tmp_path), 120) == [0, 0], (tmp_path / "rank0.log").read_text()[-3000:]
