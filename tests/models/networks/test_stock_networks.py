"""Networks of diffusers in two halves compute what diffusers computes, from their plain configuration and weights."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from stock_models import SMALL_DIT, SMALL_UNET, built, dit, unet

from fdistill.core.spec import Described
from fdistill.models.condition import Condition
from fdistill.models.networks import StockDiT, StockUNet

pytestmark = pytest.mark.system  # seconds, too many for make check

RESNETS = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
UNETS = {
    "plain": {},
    "no middle": {"mid_block_type": None},
    "variance": {"out_channels": 6},
    "rectangle": {"sample_size": [8, 16]},
    "ADM": RESNETS
    | {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    | {"attn_norm_num_groups": 4, "num_class_embeds": 4},
    "DDPM": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "NCSN++": {
        "time_embedding_type": "fourier",
        "center_input_sample": True,
        "block_out_channels": [32, 32],
        "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
        "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
        "norm_num_groups": None,
    },
}
every_unet = pytest.mark.parametrize("changes", UNETS.values(), ids=UNETS)


def ours(cls, stock, *arguments):
    network = cls({name: value for name, value in stock.config.items() if name[0] != "_"}, *arguments).eval()
    network.load_state_dict(network.from_stock_names(stock.state_dict()))
    return network


def batch(network, n=4):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % network.num_classes if network.num_classes else None
    return torch.randn(n, *network.sample_shape, generator=generator), torch.linspace(0.1, 0.9, n), labels


@every_unet
@torch.no_grad()
def test_a_unet_is_that_of_diffusers_at_its_timestep(changes):
    stock = unet(**changes)
    network = ours(StockUNet, stock, 999.0)
    x, noise, labels = batch(network)
    assert torch.equal(network(x, noise, labels), stock(x, 999.0 * noise, class_labels=labels).sample[:, :3])


@every_unet
def test_a_unet_comes_back_from_its_description_as_json(changes):
    network = ours(StockUNet, unet(**changes))
    again = Described.from_spec(json.loads(json.dumps(network.spec())))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert again.sample_shape == network.sample_shape


@torch.no_grad()
def test_a_dit_is_that_of_diffusers_for_every_class_and_for_none():
    stock = dit()
    network = ours(StockDiT, stock, 999.0)
    x, noise, _ = batch(network, n=6)
    labels = torch.arange(6)  # 5 is "no class" of both
    assert torch.equal(network(x, noise, labels), stock(x, 999.0 * noise, labels).sample[:, :4])
    assert network.num_classes == 5
    assert network.knows_no_class


@torch.no_grad()
def test_training_drops_no_labels_inside_a_dit():
    network = ours(StockDiT, dit())
    x, noise, labels = batch(network, n=64)
    quiet = network(x, noise, labels)
    torch.testing.assert_close(network.train()(x, noise, labels), quiet, rtol=0, atol=0)


@torch.no_grad()
def test_the_tap_of_a_dit_is_its_patches_in_place():
    """Patches never look at each other before attention: with no block run, a tap changes where the sample does."""
    network = ours(StockDiT, dit())
    x, noise, labels = batch(network, n=1)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    network.transformer.transformer_blocks = network.transformer.transformer_blocks[:1]
    taps = [network.encode(each, noise, Condition.of(labels, network.takes)).features[0] for each in (x, changed)]
    moved = (taps[0] != taps[1]).any(1)[0]
    assert moved.nonzero().tolist() == [[1, 3]]


def test_without_a_row_of_its_own_no_class_is_nan():
    network = ours(StockUNet, unet(num_class_embeds=3))
    x, noise, _ = batch(network)
    output = network(x, noise, torch.tensor([0, 1, 2, 3]))
    assert output.flatten(1).isfinite().all(1).tolist() == [True, True, True, False]
    assert (network.num_classes, network.knows_no_class) == (3, False)


def test_a_last_class_that_is_none_is_no_class():
    network = ours(StockUNet, unet(num_class_embeds=3), 1.0, True)
    x, noise, _ = batch(network)
    assert network(x, noise, torch.tensor([0, 1, 2, 2])).isfinite().all()
    assert (network.num_classes, network.knows_no_class) == (2, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_size": None}, "integer"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 10}, "timesteps"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"out_channels": 4}, "out_channels"),
        ({"colour": "red"}, "colour"),
        ({"down_block_types": ["DownBlock2D"]}, "configuration"),
        ({"down_block_types": ["NoBlock2D"] * 2}, "configuration"),
    ],
)
def test_a_unet_that_is_no_denoiser_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        StockUNet(SMALL_UNET | changes)


def test_a_last_class_needs_another_beside_it():
    with pytest.raises(ValueError, match="num_class_embeds"):
        StockUNet(SMALL_UNET | {"num_class_embeds": 1}, last_class_is_none=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 5}, "out_channels"),
        ({"num_layers": 1}, "num_layers=1"),
        ({"sample_size": 9}, "patch_size"),
        ({"norm_type": "layer_norm"}, "configuration"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_dit_that_is_no_denoiser_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        StockDiT(SMALL_DIT | changes)


def test_a_network_is_built_from_its_configuration_alone():
    stock = built(UNet2DModel, SMALL_UNET)
    assert ours(StockUNet, stock).state_dict().keys() == {f"unet.{name}" for name in stock.state_dict()}
