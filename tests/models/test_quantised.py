"""Weights in int8: products and their derivatives are those of s q, and a graph keeps nothing but q."""

import copy

import pytest
import torch
from stock_models import SMALL_UNET
from tiny_runs import mlp
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from fdistill.models.adapters import LowRankInt8Conv2d, LowRankInt8Linear, adapter_layers, merged, with_adapters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, SmallUNet, SongUNet, StockUNet
from fdistill.models.quantised import Int8Conv2d, Int8Linear, dequantise, quantise, quantised_layers
from fdistill.theory.preconditioning import EDM

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 2, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 5, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), (1, 4, 5, 6)),
}


def built(kind):
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    return nn.Sequential(layer()), torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_products_and_their_derivatives_are_those_of_the_rounded_weight(kind):
    module, x = built(kind)
    quantise(module)
    module.double()
    assert type(module[0]) in (Int8Linear, Int8Conv2d)
    plain = copy.deepcopy(module)
    dequantise(plain)
    assert type(plain[0]) in (nn.Linear, nn.Conv2d)
    assert_close(module(x), plain(x), rtol=1e-12, atol=1e-12)
    (found,), (expected,) = (torch.autograd.grad(each(x).square().sum(), x) for each in (module, plain))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(lambda y: module(y).tanh(), x)


def test_weights_are_rounded_by_outputs_to_half_a_step():
    module, _ = built("convolution")
    with torch.no_grad():
        module[0].weight[0] *= 1000.0
        module[0].weight[1] = 0.0
    before = module[0].weight.detach().clone()
    quantise(module)
    weight, scale = module[0].weight, module[0].weight_scale
    assert (weight.dtype, weight.shape, scale.shape) == (torch.int8, before.shape, (6, 1, 1, 1))
    assert ((weight * scale - before).abs() <= 0.5001 * scale).all()
    assert set(weight.flatten(1).abs().amax(1).tolist()) == {0, 127}


def test_a_graph_keeps_int8():
    module, x = built("linear")
    quantise(module)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x.float()).sum()
    assert [tensor.dtype for tensor in kept if tensor.shape == (4, 6)] == [torch.int8]


def stock():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(StockUNet(SMALL_UNET, noise_scale=1.0), EDM(0.5)).eval()


def song():
    sizes = {"resolution": 8, "channels": 1, "model_channels": 8, "blocks_per_level": 1, "channel_mult": [1]}
    return Denoiser(SongUNet(**sizes, attention_resolutions=[8]), EDM(0.5)).eval()


@pytest.mark.parametrize("network", [mlp, stock, song, lambda: Denoiser(SmallUNet(8, 1, (8,)), EDM(0.5)).eval()])
def test_a_denoiser_in_int8_is_near_itself_and_comes_back(network):
    base = network()
    held = copy.deepcopy(base).hold_in(torch.int8)
    layers = quantised_layers(held)
    assert sum(layer.weight.numel() for layer in layers) > 0.5 * sum(p.numel() for p in base.parameters())
    x, sigma = torch.randn(4, *base.sample_shape, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    difference = (held(x, sigma) - base(x, sigma)).abs().max()
    assert 0 < difference < 0.05 * base(x, sigma).abs().max()
    expected = held(x, sigma)
    assert not quantised_layers(held.hold_in(torch.float32))
    assert held.state_dict().keys() == base.state_dict().keys()
    assert_close(held(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_adapters_stand_on_int8_and_are_merged_with_it():
    base = stock().hold_in(torch.int8)
    adapted = with_adapters(base, 2, alpha=3.0, targets="all")
    kinds = {type(layer) for layer in adapter_layers(adapted).values()}
    assert kinds == {LowRankInt8Conv2d, LowRankInt8Linear}
    whole = merged(adapted)
    assert {type(layer) for layer in whole.modules()} == {type(layer) for layer in stock().modules()}
    x, sigma = torch.randn(2, *base.sample_shape), torch.ones(2)
    assert_close(adapted(x, sigma), whole(x, sigma), rtol=1e-4, atol=1e-5)


def test_a_network_without_plain_layers_is_refused():
    sizes = {"resolution": 8, "channels": 1, "model_channels": 8, "blocks_per_level": 1, "channel_mult": [1]}
    with pytest.raises(ValueError, match="EDM2UNet has none") as error:
        Denoiser(EDM2UNet(**sizes, channels_per_head=8), EDM(0.5)).hold_in(torch.int8)
    assert "\n" not in str(error.value)
