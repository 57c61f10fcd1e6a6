"""Two ranks tune a teacher by adapters, whole or in parts, as they tune a full copy."""

import functools

import pytest
import torch
from forked import ended, fork_ranks
from shared_roles import Kept, chain_rule_error, doubled, moved_factors
from tiny_runs import adam, fit, mlp, ring, weights

from fdistill.core.distributed import is_sharded, whole
from fdistill.evaluation.features import PixelFeatures
from fdistill.models.adapters import adapter_parameters, merged, shares
from fdistill.objectives.reward_algorithms import DDPO, DiffusionNFT, FlowGRPO
from fdistill.objectives.rewards import TargetReward
from fdistill.sampling.grids import KarrasGrid
from fdistill.training import RewardTuningModule
from fdistill.training.callbacks import RewardGap
from fdistill.training.parallel import ReplicatedStrategy, ShardedStrategy
from fdistill.training.roles import FullCopies, SharedBase

pytestmark = pytest.mark.slow

ALGORITHMS = {
    "Flow-GRPO": lambda: FlowGRPO(group=3, kl_weight=0.3),
    "DDPO": lambda: DDPO(group=2, updates=2, clip=0.01, kl_weight=0.3),
    "DiffusionNFT": lambda: DiffusionNFT(group=3, kl_weight=0.3),
}
BASE = SharedBase(2, 3.0, "all")


def tuning(algorithm, teacher=None, **changes):
    arguments = {"optimizer": adam, "grid": KarrasGrid(4, 0.05, 10.0), "roles": BASE, "at_once": 5}
    teacher, reward = teacher or mlp(num_classes=2), TargetReward([1.0, -1.0])
    return RewardTuningModule(teacher, reward, ALGORITHMS[algorithm](), **arguments | changes).train()


def proves(name, strategy):
    """Gradients of the factors are those of a full copy by the chain rule, in float64; the base stays as it is."""
    torch.set_default_dtype(torch.float64)
    kept = {"optimizer": Kept, "gradient_clip": 1e9}
    shared = doubled(tuning(name, **kept))
    moved_factors(shared.denoiser, seed=0)
    base, reference = weights(shared.reference), mlp(num_classes=2)
    full = doubled(tuning(name, merged(shared.denoiser), reference=reference, roles=FullCopies(), **kept))
    if shared.old is not None:
        moved_factors(shared.old, seed=1)
        full.old.load_state_dict(merged(shared.old).state_dict())
    for module, how in ((shared, strategy), (full, ReplicatedStrategy)):
        fit(module, 1, ring(batch_size=4), strategy=how(), devices=2)
    assert chain_rule_error(shared, full, ("denoiser",)) < 1e-9
    assert all(torch.equal(whole(value), base[part]) for part, value in weights(shared.reference).items())
    torch.set_default_dtype(torch.float32)


def continues(name, strategy, folder):
    """Two turns and two more are four, bit for bit; the gap is measured on the way."""
    half, whole_run, resumed = (tuning(name) for _ in range(3))
    path = folder / f"{name}.ckpt"
    fit(half, 2, ring(batch_size=4), strategy=strategy(), devices=2).save_checkpoint(path)
    gap = RewardGap(2, (2,), eta=1.2, seeds=4, teacher_draws=2, spaces={"x": PixelFeatures()})
    fit(whole_run, 4, ring(batch_size=4), strategy=strategy(), devices=2, callbacks=[gap])
    if strategy is ReplicatedStrategy:
        assert shares(whole_run.denoiser, whole_run.reference)
    else:
        assert is_sharded(whole_run.denoiser)
        assert is_sharded(whole_run.ema.average)
        assert is_sharded(whole_run.reference) == (strategy is ShardedStrategy)
    fit(resumed, 4, ring(batch_size=4), strategy=strategy(), devices=2, resume_from=path)
    for one, other in zip(whole_run.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(whole(one), whole(other))
    assert all(whole(factor).abs().max() > 0 for factor in adapter_parameters(resumed.denoiser))


STRATEGIES = {
    "replicated": ReplicatedStrategy,
    "sharded": ShardedStrategy,
    "sharded, whole reference": functools.partial(ShardedStrategy, shard_teacher=False),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_adapters_learn_on_two_ranks_what_a_full_copy_does_and_continue_bit_for_bit(name, strategy, tmp_path):
    def work(rank):
        proves(name, STRATEGIES[strategy])
        continues(name, STRATEGIES[strategy], tmp_path)

    assert ended(fork_ranks(work, tmp_path), 120) == [0, 0], (tmp_path / "rank0.log").read_text()[-3000:]
