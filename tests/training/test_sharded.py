"""What the sharded strategy refuses, and that with one process it changes nothing."""

import pytest
import torch
from tiny_runs import GivenData, distillation, exact, fit, mlp, teacher_training, weights
from torch.testing import assert_close

from fdistill.core.distributed import gathered, is_sharded, whole
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, SmallUNet, TwoExperts
from fdistill.theory.preconditioning import EDM
from fdistill.training.parallel import ShardedStrategy


def edm2():
    network = EDM2UNet(
        resolution=4, channels=1, model_channels=8, channel_mult=(1,), blocks_per_level=1, channels_per_head=4
    )
    return teacher_training(network), GivenData(torch.randn(8, 1, 4, 4))


def images():
    return Denoiser(SmallUNet(4, 1, (4,)), EDM(1.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (edm2, "denoiser"),
        (lambda: (teacher_training(TwoExperts(mlp().network, mlp().network, 0.5)), None), "TwoExperts"),
        (
            lambda: (distillation(adversarial_weight=0.1, discriminator="fake_score", r1_weight=0.1), None),
            r"set r1_step > 0 \(0.1, say\), got 0",
        ),
        (
            lambda: (distillation(adversarial_weight=0.1, r1_weight=0.1), None),
            "features",
        ),
        (
            lambda: (distillation(edm2()[0].denoiser, student=images(), fake_score=images()), edm2()[1]),
            "single",
        ),
    ],
    ids=["writes its weights", "leaves weights out", "second derivatives", "of the teacher", "single numbers"],
)
def test_what_sharding_would_spoil_is_refused(build, message):
    module, data = build()
    with pytest.raises(ValueError, match=message):
        fit(module, 1, data, strategy="sharded", devices=1)


def test_one_process_learns_what_it_does_without_a_strategy():
    plain, parts = (distillation(adversarial_weight=0.1, student=mlp(seed=1)) for _ in range(2))
    fit(plain, 4)
    fit(parts, 4, strategy="sharded", devices=1)
    assert_close({name: whole(value) for name, value in weights(parts).items()}, weights(plain), rtol=1e-5, atol=1e-5)


def test_which_networks_are_kept_in_parts():
    module = distillation(adversarial_weight=0.1, guide=mlp(seed=1), guidance=2.0, teacher=mlp(num_classes=2))
    assert set(ShardedStrategy().shards(module)) == {"teacher", "guide", "student", "fake_score", "ema"}
    assert set(ShardedStrategy(shard_teacher=False).shards(module)) == {"student", "fake_score", "ema"}
    assert set(ShardedStrategy().shards(distillation(exact([[0.0, 1.0]], [0.3]), student=mlp(), fake_score=mlp()))) == {
        "student",
        "fake_score",
        "ema",
    }


def test_gathering_what_is_whole_does_nothing():
    network = mlp()
    with gathered(network):
        assert not is_sharded(network)
    assert not is_sharded(network)
