"""Layers that keep magnitudes do, and forced normalisation writes to weights no more often than it must."""

import copy

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.networks import EDM2UNet
from fdistill.models.networks.magnitude_preserving import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, unit_magnitude


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def magnitude(x):
    return x.square().mean().sqrt().item()


def small(**changes):
    torch.manual_seed(0)
    arguments = {"model_channels": 16, "channel_mult": (1, 2), "blocks_per_level": 1, "attention_resolutions": (4,)}
    return EDM2UNet(8, 2, 3, channels_per_head=16, **{**arguments, **changes})


def batch():
    return normal(3, 2, 8, 8).float(), torch.tensor([-0.5, 0.1, 0.7]), torch.tensor([0, 2, 3])


def test_magnitude_survives_every_layer():
    a, b = normal(400, 64), normal(400, 192, seed=1)
    assert magnitude(mp_silu(normal(100_000))) == pytest.approx(1, abs=0.01)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert magnitude(mp_sum(a, b[:, :64], t)) == pytest.approx(1, abs=0.02)
    joined = mp_cat(a, b)
    assert magnitude(joined) == pytest.approx(1, abs=0.02)
    assert joined[:, :64].norm().item() == pytest.approx(joined[:, 64:].norm().item(), rel=0.02)  # equal shares
    assert magnitude(MPFourier(4096).double()(normal(50))) == pytest.approx(1, abs=0.02)
    assert magnitude(MPConv(64, 512).double()(a)) == pytest.approx(1, abs=0.02)
    assert magnitude(MPConv(4, 256, 3).double()(normal(8, 4, 40, 40))) == pytest.approx(1, abs=0.05)  # zeros at the rim


def test_unit_magnitude_is_one_along_its_axes_and_finite_at_zero():
    x = 7 * normal(2, 5, 3)
    assert_close(unit_magnitude(x, 1).square().mean(dim=1).sqrt(), torch.ones(2, 3, dtype=x.dtype), atol=1e-4, rtol=0)
    zero = torch.zeros(2, 3, requires_grad=True)
    unit_magnitude(zero, 1).sum().backward()
    assert zero.grad.isfinite().all()


def test_the_output_does_not_depend_on_the_length_of_a_weight():
    layer, x = MPConv(6, 4, 1).double(), normal(2, 6, 3, 3)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(50)
    assert_close(layer(x), before, rtol=1e-3, atol=1e-3)  # up to the 1e-4 that guards against zero


def test_training_normalises_weights_and_evaluation_leaves_them():
    network = small()
    before = copy.deepcopy(network.state_dict())
    network.eval()(*batch())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()(*batch())
    layers = [module for module in network.modules() if isinstance(module, MPConv)]
    for layer in layers:
        sizes = layer.weight.flatten(1).square().mean(dim=1).sqrt()
        assert_close(sizes, torch.ones_like(sizes), rtol=0, atol=5e-3)  # 1e-4 over the length before
    assert len(layers) > 10


def test_a_second_forward_pass_may_come_before_the_backward_pass_of_the_first():
    network = small(dropout=0.0).train()
    with torch.no_grad():
        network.out_gain.fill_(1.0)
    first = network(*batch())
    second = network(*batch())
    assert torch.equal(first, second)
    (first + second).sum().backward()
    weight = network.out_conv.weight
    long = weight.flatten(1).norm(dim=1)
    torch.optim.SGD([weight], lr=0.01).step()
    assert (weight.flatten(1).norm(dim=1) > 1.0001 * long).all()  # a gradient is orthogonal to its weight
    network(*batch())
    assert_close(weight.flatten(1).norm(dim=1), long, rtol=1e-4, atol=0)


def test_a_copy_normalises_for_itself():
    network = small().train()
    network(*batch())
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.emb_noise.weight.mul_(3)
    other(*batch())
    assert_close(other.emb_noise.weight, network.emb_noise.weight, rtol=1e-3, atol=1e-3)


def test_attention_needs_whole_heads():
    with pytest.raises(ValueError, match="channels_per_head"):
        EDM2UNet(8, 1, 0, 16, (1, 2), blocks_per_level=1, attention_resolutions=())
