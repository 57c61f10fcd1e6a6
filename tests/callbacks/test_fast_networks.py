"""Compiled networks compute what they computed, under the same names."""

import pytest
import torch
from tiny_runs import GivenData, distillation, fit, weights

from fdistill.callbacks import FastNetworks
from fdistill.denoiser import Denoiser
from fdistill.divergences import JensenShannon
from fdistill.networks import SmallUNet
from fdistill.preconditioning import EDM


def run(*callbacks):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = distillation(
            Denoiser(SmallUNet(4, 1, (8, 8)), EDM(1.0)), divergence=JensenShannon(), adversarial_weight=0.1
        )
    images = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fit(module, 3, GivenData(images), callbacks=list(callbacks))
    return module


@pytest.mark.parametrize("backend", ["none", "aot_eager"])
def test_three_turns_are_those_of_the_networks_as_they_are(backend):
    fast, plain = run(FastNetworks(backend)), run()
    assert weights(fast).keys() == weights(plain).keys()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fast)[name], value, rtol=1e-3, atol=1e-4)
    assert fast.student.network.input.weight.is_contiguous(memory_format=torch.channels_last)
    assert ("encode" in vars(fast.student.network)) == (backend != "none")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"compiles by one of none, .*inductor.*: got 'fast'"):
        FastNetworks("fast")
