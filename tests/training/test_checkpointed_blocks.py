"""Gradient checkpointing: the same gradients to the last bit, with fewer bytes alive."""

from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from stock_models import SMALL_UNET
from text_pipelines import built
from tiny_runs import GivenData, distillation, fit, weights

from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import StockDiT, StockUNet
from fdistill.models.networks.text import TextToImageNetwork
from fdistill.objectives import DMD2, SiD
from fdistill.theory.preconditioning import EDM, VelocityPrediction
from fdistill.training.at_rest import at_rest_as_now, weights_at_rest
from fdistill.training.planning import dry_turn

pytestmark = pytest.mark.system  # seconds, too many for make check


def of_text(family):
    pipeline = built(family)
    stock = pipeline.components["unet" if "unet" in pipeline.components else "transformer"]
    config = {name: value for name, value in stock.config.items() if name[:1] != "_"}
    guidance = 3.5 if config.get("guidance_embeds") else None
    network = TextToImageNetwork(family, config, (4, 8, 8), 2, guidance)
    network.load_state_dict({f"stock.{name}": value for name, value in stock.state_dict().items()})
    return Denoiser(network, VelocityPrediction(1000.0))


def gradients(denoiser, resting):
    """Of features and value, by the sample, and by the weights where they do not rest; each taken twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator).requires_grad_()
    sizes = {name: [size or 5 for size in entry.shape] for name, entry in denoiser.takes.items()}
    condition = Condition({name: torch.randn(2, *size, generator=generator) for name, size in sizes.items()})
    of = [x] if resting else [x, *denoiser.network.stock.parameters()]
    with weights_at_rest(denoiser) if resting else nullcontext():
        half = denoiser.encode(x, torch.tensor([0.5, 2.0]), condition)
        loss = denoiser.finish(half).square().sum() + half.features[0].square().sum()
    first = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
    return [*first, *torch.autograd.grad(loss, of, allow_unused=True)]


@pytest.mark.parametrize("resting", [False, True])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_the_gradients_of_text_networks_have_the_same_bits(family, resting):
    denoiser = of_text(family)
    plain = gradients(denoiser, resting)
    denoiser.network.checkpoint_gradients(at_rest_as_now)
    again = gradients(denoiser, resting)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def of_classes(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = StockUNet(
            SMALL_UNET | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 4} | changes, 1.0, True
        )
    return Denoiser(network, EDM(0.5))


def transformer():
    sizes = {"sample_size": 8, "patch_size": 2, "num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = StockDiT(sizes | {"in_channels": 1, "num_embeds_ada_norm": 3, "norm_num_groups": 1})
    return Denoiser(network, EDM(0.5))


@pytest.mark.parametrize("build", [of_classes, transformer])
@pytest.mark.parametrize("objective", [DMD2(0.1), SiD()])
def test_turns_move_the_same_weights_to_the_same_bits(objective, build):
    """DMD2 reads features of the teacher; SiD goes back through teacher and fake score, whose weights rest then."""
    ended, asked = [], []
    for checkpointed in (False, True):
        module = distillation(
            build(), objective, gradient_checkpointing=checkpointed, turn="alternating", fake_updates_per_student=1
        )
        calls = []
        inner = next(part for part in module.student.modules() if isinstance(part, ResnetBlock2D | Attention))
        inner.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        fit(module, 4, GivenData(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 3))
        ended.append(weights(module))
        asked.append(len(calls))
    assert asked[1] == asked[0] + module.updates
    assert ended[0].keys() == ended[1].keys()
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


@pytest.mark.system  # seconds
@pytest.mark.slow
def test_it_keeps_fewer_activations_for_more_arithmetic():
    deep = {"layers_per_block": 2, "sample_size": 16}
    plain, again = (
        dry_turn(distillation(of_classes(**deep), SiD(), gradient_checkpointing=on, turn="fused"), 16, 0)
        for on in (False, True)
    )
    assert again.gradients == plain.gradients
    assert again.peak_bytes < 0.7 * plain.peak_bytes
    assert 1.1 < again.flops / plain.flops < 4 / 3


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        distillation(gradient_checkpointing=True)
