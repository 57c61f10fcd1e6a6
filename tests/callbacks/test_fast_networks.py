"""Compiled networks compute what they computed, under the same names."""

import pytest
import torch
from tiny_runs import GivenData, distillation, fit, mlp, weights

from fdistill.callbacks import FastNetworks
from fdistill.denoiser import Denoiser
from fdistill.divergences import JensenShannon
from fdistill.networks import SmallUNet
from fdistill.preconditioning import EDM


def run(build, *callbacks):
    module = distillation(build(), divergence=JensenShannon(), adversarial_weight=0.1)
    data = GivenData(torch.randn(16, *module.student.sample_shape, generator=torch.Generator().manual_seed(0)))
    fit(module, 2, data, callbacks=list(callbacks))
    return module


def images():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(4, 1, (8, 8)), EDM(1.0))


@pytest.mark.parametrize(("build", "backend"), [(images, "none"), (mlp, "eager")])
def test_turns_are_those_of_the_networks_as_they_are(build, backend):
    fast, plain = run(build, FastNetworks(backend)), run(build)
    assert weights(fast).keys() == weights(plain).keys()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fast)[name], value, rtol=1e-3, atol=1e-4)
    assert ("encode" in vars(fast.student.network)) == (backend != "none")


def test_convolutions_lie_with_channels_last():
    network = run(images, FastNetworks("none")).student.network
    assert network.input.weight.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"compiles by one of none, .*inductor.*: got 'fast'"):
        FastNetworks("fast")
