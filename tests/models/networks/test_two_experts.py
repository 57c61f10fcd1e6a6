"""Each sample is its own expert's alone: its output, its features, its gradients, its cost."""

import math

import pytest
import torch
from torch.testing import assert_close

from fdistill.core.spec import Described
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, GaussianMixture, SmallUNet, TwoExperts
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction

SPLIT = 0.4
NOISE = torch.tensor([0.1, 0.9, SPLIT, 0.3, 0.5], dtype=torch.float64)
LOW = torch.tensor([True, False, False, True, False])


def experts(num_classes=3):
    torch.manual_seed(0)
    low, high = (SmallUNet(4, 1, (8, 12), num_classes).double() for _ in range(2))
    return TwoExperts(low, high, SPLIT)


def batch(network, n=5):
    x = torch.randn(n, *network.sample_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(n) % (network.num_classes + 1) if network.num_classes else None


def test_a_sample_below_the_split_is_the_low_experts_and_any_other_the_high_ones():
    network = experts()
    x, labels = batch(network)
    output, features = network(x, NOISE, labels), network.encode(x, NOISE, Condition({"labels": labels})).features
    for side, rows in ((network.low, LOW), (network.high, ~LOW)):
        assert_close(output[rows], side(x[rows], NOISE[rows], labels[rows]))
        alone = side.encode(x[rows], NOISE[rows], Condition({"labels": labels[rows]})).features
        for tap, own in zip(features, alone, strict=True):
            assert_close(tap[rows], own)


@pytest.mark.parametrize(("noise", "idle"), [(0.2, "high"), (0.7, "low")])
def test_a_batch_on_one_side_neither_asks_nor_teaches_the_other_expert(noise, idle):
    network = experts()
    x, labels = batch(network)
    asked = []
    for name in ("low", "high"):
        getattr(network, name).input.register_forward_hook(lambda *_, name=name: asked.append(name))
    network(x, torch.full((5,), noise, dtype=torch.float64), labels).square().sum().backward()
    assert asked == ["high" if idle == "low" else "low"]
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(idle)


def test_an_expert_learns_from_its_own_samples_alone():
    network = experts()
    x, labels = batch(network)
    network(x, NOISE, labels).square().sum().backward()
    together = [parameter.grad.clone() for parameter in network.low.parameters()]
    network.zero_grad()
    network.low(x[LOW], NOISE[LOW], labels[LOW]).square().sum().backward()
    for mine, own in zip(together, network.low.parameters(), strict=True):
        assert_close(mine, own.grad)


def test_each_sample_is_evaluated_once():
    network = experts()
    x, labels = batch(network)
    seen = []
    for expert in (network.low, network.high):
        expert.input.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    network(x, NOISE, labels)
    assert seen == [2, 3]


def test_no_sample_at_all_makes_none():
    network = experts(0)
    empty = torch.zeros(0, 1, 4, 4, dtype=torch.float64)
    assert network(empty, torch.zeros(0, dtype=torch.float64)).shape == empty.shape


def test_a_checkpoint_rebuilds_both_experts():
    network = experts()
    again = Described.from_spec(network.spec()).double()
    again.load_state_dict(network.state_dict())
    x, labels = batch(network)
    assert isinstance(again, TwoExperts)
    assert torch.equal(again(x, NOISE, labels), network(x, NOISE, labels))
    assert again.spec() == network.spec()


@pytest.mark.parametrize(
    "preconditioning", [EDM(0.5), EpsPrediction(VPLinear(), 1000.0)], ids=lambda p: type(p).__name__
)
def test_the_preconditionings_noise_input_of_a_sigma_splits_a_denoiser_there(preconditioning):
    at = preconditioning.coefficients(torch.tensor([2.0], dtype=torch.float64)).noise
    network = TwoExperts(MLP(width=8, depth=2), MLP(width=8, depth=2), float(at)).double()
    denoiser = Denoiser(network, preconditioning)
    x, sigma = torch.randn(2, 2, dtype=torch.float64), torch.tensor([1.999, 2.001], dtype=torch.float64)
    one, two = (Denoiser(expert, preconditioning)(x, sigma) for expert in (network.low, network.high))
    assert_close(denoiser(x, sigma), torch.stack([one[0], two[1]]))


def test_no_class_is_known_where_both_experts_know_it():
    low, high = (MLP(width=8, depth=2, num_classes=2) for _ in range(2))
    assert TwoExperts(low, high, 0.5).knows_no_class
    high.knows_no_class = False
    assert not TwoExperts(low, high, 0.5).knows_no_class


@pytest.mark.parametrize(
    ("high", "split", "says"),
    [
        (MLP(dim=3, width=8, depth=2), 0.5, "sample_shape"),
        (MLP(width=8, depth=2, num_classes=2), 0.5, "takes"),
        (MLP(width=12, depth=2), 0.5, "feature_channels"),
        (GaussianMixture([[0.0, 0.0]], [1.0]), 0.5, "feature_channels"),
        (MLP(width=8, depth=2), math.inf, "split"),
    ],
)
def test_experts_that_do_not_agree_are_refused(high, split, says):
    with pytest.raises(ValueError, match=says):
        TwoExperts(MLP(width=8, depth=2), high, split)
