"""Adapters on a shared base: the function, its gradients and its memory are those of the merged weights."""

import copy

import pytest
import torch
from stock_models import SMALL_UNET
from tiny_runs import mlp
from torch import nn
from torch.testing import assert_close

from fdistill.models.adapters import (
    LowRankConv2d,
    LowRankLinear,
    adapter_layers,
    adapter_parameters,
    adapter_state,
    load_adapter_state,
    merged,
    shares,
    sharing_copy,
    with_adapters,
)
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, SmallUNet, SongUNet, StockUNet
from fdistill.theory.preconditioning import EDM


def exactly(tensor, other):
    assert_close(tensor, other, rtol=1e-10, atol=1e-10)


def moved(denoiser, seed=1):
    """The same with a B that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter_parameters(denoiser):
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator, dtype=factor.dtype))
    return denoiser


@torch.no_grad()
def built(network, **arguments):
    """In float64, with no layer that is next to 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(network(**arguments), EDM(0.5)).double().eval()
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return denoiser


TINY = {"resolution": 8, "channels": 1, "model_channels": 8, "blocks_per_level": 1}
SONG = TINY | {"channel_mult": [1, 2], "attention_resolutions": [4]}
EDM2 = TINY | {"channel_mult": [1], "channels_per_head": 8}
NETWORKS = {
    "small": lambda: built(SmallUNet, num_classes=3),
    "song": lambda: built(SongUNet, **SONG),
    "stock": lambda: built(StockUNet, config=SMALL_UNET, noise_scale=1.0),
}


def asked(denoiser, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *denoiser.sample_shape, generator=generator, dtype=torch.float64)
    condition = torch.arange(2) if denoiser.num_classes else None
    return denoiser(x, torch.tensor([0.3, 2.0], dtype=torch.float64), condition)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_function_is_that_of_the_merged_weights(network):
    base = NETWORKS[network]()
    adapted = with_adapters(base, 2, alpha=3.0, targets="all")
    assert torch.equal(asked(adapted), asked(base))  # B is 0
    moved(adapted)
    assert (asked(adapted) - asked(base)).abs().max() > 1e-3
    exactly(asked(adapted), asked(merged(adapted)))
    assert {type(layer) for layer in merged(adapted).modules()} == {type(layer) for layer in base.modules()}
    assert merged(adapted).state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradients_of_the_factors_are_the_merged_weight_s_by_the_chain_rule(network):
    """W + s B A: dA = s B^T dW, dB = s dW A^T."""
    adapted = moved(with_adapters(NETWORKS[network](), 2, alpha=3.0, targets="all"))
    plain = merged(adapted).requires_grad_(True)
    asked(adapted).square().sum().backward()
    asked(plain).square().sum().backward()
    weights = dict(plain.named_parameters())
    for name, layer in adapter_layers(adapted).items():
        whole = weights[f"{name}.weight"].grad.flatten(1)
        down, up = layer.lora_A.weight, layer.lora_B.weight
        by_chain_rule = 1.5 * up.detach().flatten(1).T @ whole, 1.5 * whole @ down.detach().flatten(1).T
        for factor, expected in zip((down, up), by_chain_rule, strict=True):
            assert torch.allclose(factor.grad.flatten(1), expected, rtol=1e-10, atol=1e-10)


def test_the_base_is_shared_frozen_and_never_written():
    base = NETWORKS["small"]()
    before = copy.deepcopy(base.state_dict())
    one, two = (with_adapters(base, 2, targets="all", generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    assert shares(one, base)
    assert shares(two, base)
    assert shares(one, two)
    assert not shares(copy.deepcopy(one), base)
    assert not shares(merged(one), base)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert {id(p) for p in one.parameters() if p.requires_grad} == set(map(id, adapter_parameters(one)))
    optimizer = torch.optim.SGD(adapter_parameters(one), lr=0.1)
    asked(two).sum().backward()
    for _ in range(2):
        asked(one).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not torch.equal(asked(one), asked(base))
    assert torch.equal(asked(two), asked(base))


def test_a_sharing_copy_has_adapters_of_its_own():
    base = NETWORKS["small"]()
    one = moved(with_adapters(base, 2, targets="all"))
    other = sharing_copy(one)
    assert torch.equal(asked(one), asked(other))
    assert shares(other, base)
    moved(other, 7)
    assert not torch.equal(asked(one), asked(other))


def test_graphs_of_several_roles_live_together_and_are_computed_again_as_themselves():
    """A role is no state of the network: what gradient checkpointing computes again is the same role."""

    def gradients(checkpointed):
        base = NETWORKS["stock"]()
        roles = [moved(with_adapters(base, 2, targets="attention"), seed) for seed in (1, 2)]
        for role in (*roles, base) if checkpointed else ():
            role.network.unet.enable_gradient_checkpointing()  # the library's own
            role.train()
        student, fake = roles
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(2, *base.sample_shape, generator=generator, dtype=torch.float64)
        sigma = torch.ones(2, dtype=torch.float64)
        made = student(x, sigma)
        with torch.no_grad():
            base(x, sigma), fake(x, sigma)
        (fake(made, sigma) - base(made, sigma)).square().sum().backward()
        return [[p.grad for p in adapter_parameters(role)] for role in roles]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert all(gradient.abs().max() > 0 for gradient in plain)
        for one, other in zip(plain, again, strict=True):
            exactly(one, other)


def test_states_have_peft_s_names_and_load_whole_or_not_at_all():
    base = NETWORKS["stock"]()
    one = moved(with_adapters(base, 2))
    state = adapter_state(one.network.unet)
    first = "down_blocks.1.attentions.0.to_q.lora_A.weight"
    assert state[first].shape == (2, 16)
    assert len(state) == 2 * len(adapter_layers(one))
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in state)
    assert state.keys() <= one.network.unet.state_dict().keys()
    other = with_adapters(base, 2)
    before = asked(other)
    with pytest.raises(ValueError, match="3 tensors differ"):
        load_adapter_state(other.network.unet, {n: v for n, v in list(state.items())[3:]})
    assert torch.equal(asked(other), before)
    load_adapter_state(other.network.unet, state)
    assert torch.equal(asked(other), asked(one))


def test_a_base_in_bfloat16_has_adapters_in_float32_and_is_merged_in_it():
    base = mlp().hold_in(torch.bfloat16)
    adapted = moved(with_adapters(base, 4, targets="all"))
    assert {factor.dtype for factor in adapter_parameters(adapted)} == {torch.float32}
    assert adapted.halved
    x, sigma = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.ones(8)
    assert adapted(x, sigma).dtype == torch.float32
    whole = merged(adapted)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert not whole.halved
    for name, layer in adapter_layers(adapted).items():
        delta = layer.lora_B.weight @ layer.lora_A.weight
        assert torch.equal(whole.get_submodule(name).weight, layer.weight.float() + delta)
    assert_close(adapted(x, sigma), whole(x, sigma), rtol=0.05, atol=0.05)


def test_the_factors_of_a_seed_are_the_same_and_as_large_as_peft_s():
    first, again = (
        with_adapters(mlp(), 4, targets=["first"], generator=torch.Generator().manual_seed(5)) for _ in "ab"
    )
    for one, other in zip(adapter_layers(first).values(), adapter_layers(again).values(), strict=True):
        assert torch.equal(one.lora_A.weight, other.lora_A.weight)
        bound = one.in_features**-0.5
        assert 0.8 * bound < one.lora_A.weight.abs().max() <= bound
        assert one.lora_B.weight.abs().max() == 0


def test_only_the_layers_asked_for_get_adapters():
    base = NETWORKS["stock"]()
    names = {name.rpartition(".")[2] for name in adapter_layers(with_adapters(base, 1))}
    assert names == {"to_q", "to_k", "to_v", "0"}
    some = adapter_layers(with_adapters(base, 1, targets=["conv1"]))
    assert some
    assert all(name.endswith(".conv1") and isinstance(some[name], LowRankConv2d) for name in some)
    every = adapter_layers(with_adapters(base, 8, targets="all"))
    assert {type(layer) for layer in every.values()} == {LowRankConv2d, LowRankLinear}
    assert min(min(layer.weight.flatten(1).shape) for layer in every.values()) >= 8


def quantised():
    denoiser = mlp()
    layer = denoiser.network.output
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    return denoiser


@pytest.mark.parametrize(
    ("denoiser", "arguments", "word"),
    [
        (mlp, {"rank": 2}, "match no layer"),
        (mlp, {"rank": 2, "targets": ["nothing"]}, "input"),
        (mlp, {"rank": 2, "targets": "some"}, "dmd2"),
        (mlp, {"rank": 17, "targets": ["first"]}, "first"),
        (mlp, {"rank": 100, "targets": "all"}, "up to 16"),
        (mlp, {"rank": 0}, "rank"),
        (mlp, {"rank": 1, "alpha": 0.0}, "alpha"),
        (quantised, {"rank": 1, "targets": ["output"]}, "int8"),
        (lambda: with_adapters(mlp(), 1, targets="all"), {"rank": 1, "targets": "all"}, "merge"),
        (
            lambda: built(EDM2UNet, **EDM2),
            {"rank": 1, "targets": ["emb_noise"]},
            "MPConv",
        ),
        (
            lambda: built(EDM2UNet, **EDM2),
            {"rank": 1, "targets": "all"},
            "EDM2UNet",
        ),
    ],
)
def test_what_has_no_adapters_is_refused_in_one_line(denoiser, arguments, word):
    with pytest.raises(ValueError, match=word) as error:
        with_adapters(denoiser(), **arguments)
    assert "\n" not in str(error.value)
