"""Resampling filters and attention of SongUNet have the properties that their names promise."""

import pytest
import torch
from torch.testing import assert_close

from fdistill.models.networks import SongUNet
from fdistill.models.networks.attention import attend, heads_of
from fdistill.models.networks.resampling import Downsample, Upsample
from fdistill.models.networks.song_unet import PositionalEmbedding, RandomFourier

FILTERS = [(1, 1), (1, 3, 3, 1)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("taps", FILTERS)
def test_doubling_is_four_times_the_transpose_of_halving(taps):
    x, y = normal(2, 3, 4, 4), normal(2, 3, 8, 8, seed=1)
    assert_close((Upsample(taps)(x) * y).sum(), 4 * (x * Downsample(taps)(y)).sum())


@pytest.mark.parametrize("taps", FILTERS)
def test_resampling_keeps_a_constant_away_from_the_rim(taps):
    rim = len(taps) // 2 - 1
    inner = slice(rim, -rim or None)
    assert_close(Downsample(taps)(torch.ones(1, 2, 8, 8))[..., inner, inner].unique(), torch.ones(1))
    assert_close(Upsample(taps)(torch.ones(1, 2, 4, 4))[..., inner, inner].unique(), torch.ones(1))


def test_the_box_filter_takes_means_and_repeats():
    x = normal(2, 3, 8, 8)
    assert_close(Downsample((1, 1))(x), torch.nn.functional.avg_pool2d(x, 2))
    assert_close(Upsample((1, 1))(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_a_filter_of_odd_length_is_refused():
    with pytest.raises(ValueError, match="weights"):
        Downsample([1, 2, 1])


def test_attention_averages_where_all_keys_are_equal_and_copies_the_key_that_stands_out():
    query, value = normal(2, 1, 4, 5), normal(2, 1, 4, 5, seed=1)
    mean = attend(query, torch.ones_like(query), value).reshape(value.shape)
    assert_close(mean, value.mean(dim=3, keepdim=True).expand_as(value), rtol=1e-6, atol=1e-6)
    one = torch.eye(4, dtype=torch.float64)[None, None]
    assert_close(attend(200 * one, one, one)[0], one[0, 0], rtol=0, atol=1e-6)


def test_attention_equals_that_of_torch():
    query, key, value = heads_of(normal(2, 24, 3, 5), 2)
    expected = torch.nn.functional.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (query, key, value)))
    assert_close(attend(query, key, value), expected.transpose(2, 3).flatten(1, 2), rtol=1e-6, atol=1e-6)


def test_an_embedding_has_sines_before_cosines_of_the_same_angles():
    for embedding in (PositionalEmbedding(8), RandomFourier(8)):
        sines, cosines = embedding.double()(normal(5)).chunk(2, dim=1)
        assert_close(sines.square() + cosines.square(), torch.ones_like(sines))
    slow = PositionalEmbedding(8)(torch.tensor([1.0]))
    assert_close(slow[0, [0, 3]], torch.tensor([1.0, 1e-4]).sin())


def test_no_class_is_the_sum_over_no_classes():
    torch.manual_seed(0)
    network = SongUNet(4, 1, 2, 8, (1,), blocks_per_level=1, attention_resolutions=()).eval()
    with torch.no_grad():
        network.dec["4x4_aux_conv"].weight.mul_(1e5)
        network.dec["4x4_block0"].conv1.weight.mul_(1e5)
        x, noise = normal(1, 1, 4, 4).float(), torch.tensor([0.3])
        without = network(x, noise, torch.tensor([2]))
        assert not torch.allclose(network(x, noise, torch.tensor([0])), without)
        network.map_label.weight.zero_()
        assert torch.equal(network(x, noise, torch.tensor([0])), without)


def test_a_slope_of_a_slope_exists():
    torch.manual_seed(0)
    network = SongUNet(4, 1, 0, 8, (1, 1), blocks_per_level=1, attention_resolutions=(4,)).double().eval()
    x = normal(1, 1, 4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(network(x, torch.zeros(1).double()).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("choice", [{"embedding": "learned"}, {"encoder": "skip"}, {"decoder": "residual"}])
def test_an_unknown_choice_names_the_known_ones(choice):
    with pytest.raises(ValueError, match="SongUNet"):
        SongUNet(**choice)
