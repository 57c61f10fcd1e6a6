"""Our split of diffusers' UNet is diffusers' UNet, and both UNets halve the image."""

import pytest
import torch
from diffusers import UNet2DModel
from torch.testing import assert_close

from fdistill.models.condition import Condition
from fdistill.models.networks import DiffusersUNet, SmallUNet

UNETS = {
    "unconditional": {"widths": (8, 16)},
    "class-conditional": {"widths": (8, 16), "num_classes": 3},
    "attention": {"widths": (8, 8, 16), "channels": 3, "num_classes": 3, "attention_levels": (0, 2), "groups": 4},
    "deep blocks": {"widths": (8, 16), "blocks_per_level": 3},
}
every_unet = pytest.mark.parametrize("arguments", UNETS.values(), ids=UNETS)


def build(arguments):
    torch.manual_seed(0)
    return DiffusersUNet(resolution=8, **arguments).double().eval()


def batch(network, n=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *network.sample_shape, dtype=torch.float64, generator=generator)
    labels = torch.arange(n) % network.num_classes if network.num_classes else None
    return x, torch.linspace(-1.5, 1.1, n, dtype=torch.float64), labels


@every_unet
def test_our_split_is_the_forward_pass_of_diffusers_at_a_thousand_times_the_noise(arguments):
    network = build(arguments)
    x, noise, labels = batch(network)
    stock = network.unet(x, 1000 * noise, class_labels=labels).sample
    assert torch.equal(network(x, noise, labels), stock)


@every_unet
def test_taps_are_what_each_level_hands_down(arguments):
    network = build(arguments)
    x, noise, labels = batch(network)
    encoding = network.encode(x, noise, Condition.of(labels, network.takes))
    *finer, coarsest = encoding.features
    assert torch.equal(coarsest, encoding.state[0])
    for tap, block in zip(finer, network.unet.down_blocks[:-1], strict=True):
        assert any(torch.equal(block.downsamplers[0](tap), skip) for skip in encoding.state[1])


@every_unet
def test_stock_unet_computes_the_same_and_comes_back_as_the_same_network(arguments):
    network = build(arguments)
    x, noise, labels = batch(network)
    stock = network.stock_unet().double()
    again = DiffusersUNet.from_stock(network.stock_unet()).double().eval()
    output = network(x, noise, labels)
    assert_close(stock(x, 1000 * noise, class_labels=labels).sample, output, rtol=1e-6, atol=1e-6)
    assert_close(again(x, noise, labels), output, rtol=1e-6, atol=1e-6)
    assert (again.sample_shape, again.num_classes) == (network.sample_shape, network.num_classes)
    assert again.feature_channels == network.feature_channels


def test_stock_unet_is_a_copy_without_the_row_of_no_class():
    network = build({"widths": (8, 16), "num_classes": 3})
    stock = network.stock_unet()
    assert stock.class_embedding.weight.shape[0] == stock.config.num_class_embeds == 3
    assert not stock.training
    stock.conv_in.weight.data.zero_()
    assert network.unet.conv_in.weight.any()


def test_no_class_of_a_network_from_stock_shows_itself_as_nan():
    again = DiffusersUNet.from_stock(build({"widths": (8, 16), "num_classes": 3}).stock_unet()).double().eval()
    x, noise, _ = batch(again)
    labels = torch.tensor([0, 1, 2, 3, 3])
    assert again(x, noise, labels).flatten(1).isfinite().all(dim=1).tolist() == [True, True, True, False, False]


PLAIN = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}


def test_a_plain_stock_unet_of_others_is_read():
    torch.manual_seed(0)
    unet = UNet2DModel(**PLAIN).eval()
    network = DiffusersUNet.from_stock(unet).eval()
    x, noise = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.7])
    assert torch.equal(network(x, noise), unet(x, 1000 * noise).sample)


@pytest.mark.parametrize(
    "feature",
    [
        {"time_embedding_type": "fourier"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"act_fn": "gelu"},
        {"center_input_sample": True},
        {"flip_sin_to_cos": False},
        {"norm_eps": 1e-3},
        {"add_attention": True},
        {"down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D")},
        {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        {"out_channels": 2},
        {"sample_size": (8, 16)},
        {"class_embed_type": "timestep"},
    ],
    ids=lambda feature: next(iter(feature)),
)
def test_a_stock_unet_with_features_we_do_not_compute_is_refused(feature):
    with pytest.raises(ValueError, match="describe"):
        DiffusersUNet.from_stock(UNet2DModel(**PLAIN | feature))


@pytest.mark.parametrize("network", [SmallUNet, DiffusersUNet])
@pytest.mark.parametrize(("resolution", "levels"), [(6, 3), (7, 2), (0, 1), (2, 3)])
def test_a_resolution_that_cannot_be_halved_is_refused(network, resolution, levels):
    with pytest.raises(ValueError, match=rf"divisible by {2 ** (levels - 1)}, got {resolution}"):
        network(resolution=resolution, widths=[8] * levels)


def test_widths_that_do_not_split_into_groups_are_refused():
    with pytest.raises(ValueError, match="groups"):
        DiffusersUNet(widths=(12, 16))
