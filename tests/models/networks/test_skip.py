"""The skip of an eps-network is its input and nothing else; without it a network is what it was."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.spec import Described
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, SmallUNet
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EpsPrediction

BUILDERS = {
    "MLP": lambda **more: MLP(dim=3, width=8, depth=2, num_classes=2, **more),
    "SmallUNet": lambda **more: SmallUNet(4, 2, (8, 12), num_classes=2, **more),
}
every = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def ready(build, **more):
    torch.manual_seed(0)
    network = build(**more).double().eval()
    x = torch.randn(4, *network.sample_shape, dtype=torch.float64)
    return network, (x, torch.rand(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))


@every
def test_a_skip_adds_the_input_and_draws_no_other_weights(build):
    plain, inputs = ready(build)
    skipping, _ = ready(build, skip=True)
    assert plain.state_dict().keys() == skipping.state_dict().keys()
    assert torch.equal(skipping(*inputs), plain(*inputs) + inputs[0])


@every
def test_a_record_of_before_there_was_a_skip_is_of_a_network_without(build):
    plain, inputs = ready(build)
    spec = plain.spec()
    assert spec["init_args"].pop("skip") is False
    old = Described.from_spec(spec).double().eval()
    old.load_state_dict(plain.state_dict())
    assert torch.equal(old(*inputs), plain(*inputs))


@every
def test_with_an_output_of_zero_a_network_with_a_skip_is_the_identity(build):
    network, inputs = ready(build, skip=True)
    last = network.output if isinstance(network, MLP) else network.output[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    assert torch.equal(network(*inputs), inputs[0])


def test_the_identity_predicts_eps_at_high_noise():
    """eps - alpha x = (1 - alpha sigma) eps - alpha x_0, which is alpha times a bounded number as alpha falls to 0."""
    network = MLP(dim=2, width=8, depth=2, initial_output=[0.0, 0.0], skip=True).double()
    denoiser = Denoiser(network, EpsPrediction(VPLinear()))
    eps, x_0 = torch.randn(64, 2, dtype=torch.float64), torch.ones(64, 2, dtype=torch.float64)
    errors = []
    for level in (10.0, 20.0, 40.0):
        sigma = torch.full((64,), level, dtype=torch.float64)
        x = x_0 + level * eps
        errors.append(((x - denoiser(x, sigma)) / level - eps).norm())
    assert_close(torch.stack(errors[:-1]) / torch.stack(errors[1:]), torch.full((2,), 2.0).double(), rtol=0.05, atol=0)
