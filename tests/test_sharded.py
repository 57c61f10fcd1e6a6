"""What the sharded strategy refuses, and that with one process it changes nothing."""

import pytest
import torch
from tiny_runs import GivenData, distillation, fit, mlp, teacher_training, weights
from torch.testing import assert_close

from fdistill.distributed import whole
from fdistill.networks import EDM2UNet, TwoExperts


def edm2():
    network = EDM2UNet(
        resolution=4, channels=1, model_channels=8, channel_mult=(1,), blocks_per_level=1, channels_per_head=4
    )
    return teacher_training(network), GivenData(torch.randn(8, 1, 4, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (edm2, "expected another denoiser than EDM2UNet, or --trainer.strategy replicated"),
        (lambda: (teacher_training(TwoExperts(mlp().network, mlp().network, 0.5)), None), "than TwoExperts"),
        (
            lambda: (distillation(adversarial_weight=0.1, discriminator="fake_score", r1_weight=0.1), None),
            r"set r1_step > 0 \(0.1, say\), got 0",
        ),
    ],
    ids=["writes its weights", "leaves weights out", "second derivatives"],
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
