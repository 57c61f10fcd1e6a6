"""The average forgets its random start, moves in float32, and never trains."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fdistill.training.averaging.ema import EMA


def network(value, dtype=torch.float32):
    layer = nn.Linear(3, 2).to(dtype)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def values(module):
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


def test_average_of_a_constant_network_keeps_the_share_decay_to_the_n_of_its_start():
    ema, target = EMA(network(1.0), decay=0.9), network(3.0)
    for n in range(20):
        ema.update(target, updates_before=10_000 + n)
    assert_close(values(ema.average), torch.full((8,), 3 - 2 * 0.9**20))


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_warm_up_keeps_one_in_n_plus_9_choose_9_of_the_random_start(n):
    # the product of (1 + k) / (10 + k) over k < n is n! 9! / (n + 9)!
    ema, target = EMA(network(1.0), decay=0.9999), network(0.0)
    for k in range(n):
        ema.update(target, updates_before=k)
    assert_close(values(ema.average), torch.full((8,), 1 / math.comb(n + 9, 9)), rtol=1e-5, atol=0)


def test_first_update_keeps_a_tenth_whatever_the_decay_unless_it_is_lower():
    for decay, kept in ((0.9999, 0.1), (0.5, 0.1), (0.05, 0.05), (0.0, 0.0)):
        ema = EMA(network(1.0), decay)
        ema.update(network(0.0), updates_before=0)
        assert_close(values(ema.average), torch.full((8,), kept))


def test_average_of_a_bfloat16_network_is_float32_and_moves_at_decay_9999():
    ema = EMA(network(1.0, torch.bfloat16), decay=0.9999)
    for n in range(10):
        ema.update(network(2.0, torch.bfloat16), updates_before=1_000_000 + n)
    assert values(ema.average).dtype == torch.float32
    assert_close(values(ema.average), torch.full((8,), 2 - 0.9999**10), rtol=1e-6, atol=0)
    # in bfloat16 each of these steps would round to nothing
    assert torch.tensor(1.0, dtype=torch.bfloat16).lerp(torch.tensor(2.0, dtype=torch.bfloat16), 1e-4) == 1


def test_average_stays_in_evaluation_mode_and_out_of_the_optimiser():
    ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(), decay=0.9)
    ema.train()
    nn.ModuleList([ema]).train()
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_average_is_a_copy():
    source = network(1.0)
    ema = EMA(source, decay=0.9)
    nn.init.constant_(source.weight, 5.0)
    assert_close(values(ema.average), torch.ones(8))


def test_buffers_follow_the_network_at_once():
    source = nn.BatchNorm1d(3)
    ema = EMA(source, decay=0.999)
    source(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
    ema.update(source, updates_before=100)
    assert_close(ema.average.running_mean, source.running_mean)
    assert ema.average.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_the_range_is_refused(decay):
    with pytest.raises(ValueError, match="ema_decay"):
        EMA(network(1.0), decay)
