"""Compiled networks compute what they computed, under the same names, and CUDA graphs are told where turns begin."""

import pytest
import torch
from stock_models import SMALL_UNET
from tiny_runs import GivenData, distillation, fit, mlp, teacher_training, weights
from torch._dynamo.utils import counters

from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, SmallUNet, StockUNet
from fdistill.objectives import DMD2, FDistill, SiD
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM
from fdistill.training.callbacks import FastNetworks
from fdistill.training.parallel import ShardedStrategy


def run(build, *callbacks, turns=2, objective=None, **how):
    module = distillation(build(), objective or FDistill(JensenShannon(), 0.1, "sigma"), **how)
    data = GivenData(torch.randn(16, *module.student.sample_shape, generator=torch.Generator().manual_seed(0)))
    fit(module, turns, data, callbacks=list(callbacks))
    return module


def images():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(4, 1, (8, 8)), EDM(1.0))


def assert_close(fast, plain):
    assert weights(fast).keys() == weights(plain).keys()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fast)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("build", "backend"), [(images, "none"), (mlp, "eager")])
def test_turns_are_those_of_the_networks_as_they_are(build, backend):
    fast = run(build, FastNetworks(backend))
    assert_close(fast, run(build))
    assert ("encode" in vars(fast.student.network)) == (backend != "none")


def test_a_loss_of_several_terms_goes_back_through_compiled_networks():
    """With the score matching terms of SiD a network's graph is read more than once."""
    how = {"objective": SiD(), "turn": "fused", "accumulate": 2}
    assert_close(run(mlp, FastNetworks("aot_eager"), **how), run(mlp, **how))


@pytest.mark.slow
def test_networks_that_write_their_own_weights_are_compiled_once():
    def edm2():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"model_channels": 8, "channel_mult": (1, 2), "blocks_per_level": 1, "channels_per_head": 8}
            return Denoiser(EDM2UNet(4, 1, attention_resolutions=[], **sizes), EDM(1.0))

    counters.clear()
    graphs = []
    for turns in (1, 4):
        fast = run(edm2, FastNetworks("eager"), turns=turns, objective=DMD2(0.0), normaliser="sigma")
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
    assert_close(fast, run(edm2, turns=4, objective=DMD2(0.0), normaliser="sigma"))


def test_convolutions_and_their_average_lie_with_channels_last():
    student, teacher = run(images, FastNetworks("none")), teacher_training(images().network)
    fit(teacher, 1, GivenData(torch.zeros(16, 1, 4, 4)), callbacks=[FastNetworks("none")])
    for denoiser in (student.student, student.ema.average, teacher.denoiser, teacher.ema.average):
        assert denoiser.network.input.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("backend", "mode", "expected"),
    [("inductor", "reduce-overhead", 6), ("inductor", "max-autotune", 6), ("inductor", None, 0), ("none", None, 0)],
)
def test_cuda_graphs_are_told_where_each_turn_begins(monkeypatch, backend, mode, expected):
    """Once a turn of however many networks and micro-batches: what a turn makes lives until the next one begins."""
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    run(mlp, FastNetworks(backend, mode), turns=6, turn="alternating", fake_updates_per_student=2, accumulate=2)
    assert len(begun) == expected


def test_what_survives_a_turn_is_made_outside_of_the_compiled_networks():
    """CUDA graphs overwrite what encode and decode return; the samples that are reused and the ratio are no such."""
    module = distillation(images(), FDistill(JensenShannon(), 0.1), turn="alternating", reuse_generated=True)
    returned = set()

    def noted(function):
        def call(*arguments):
            out = function(*arguments)
            leaves = torch.utils._pytree.tree_leaves(out)
            returned.update(t.untyped_storage().data_ptr() for t in leaves if isinstance(t, torch.Tensor))
            kept.extend(leaves)
            return out

        return call

    kept = []
    for denoiser in module.denoisers().values():
        network = denoiser.network
        network.encode, network.decode = noted(network.encode), noted(network.decode)
    fit(module, 6, GivenData(torch.zeros(16, 1, 4, 4)))
    survivors = torch.utils._pytree.tree_leaves([*module.last_generated, *module.last_ratio])
    assert not returned & {t.untyped_storage().data_ptr() for t in survivors if t is not None}


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="inductor"):
        FastNetworks("fast")


def test_second_derivatives_of_compiled_networks_are_refused():
    with pytest.raises(ValueError, match="derivatives"):
        run(mlp, FastNetworks("aot_eager"), objective=DMD2(), r1_weight=1.0)
    run(mlp, FastNetworks("none"), objective=DMD2(), r1_weight=1.0)


def test_compiled_networks_that_compute_activations_again_are_refused():
    def unet():
        return Denoiser(StockUNet(SMALL_UNET | {"in_channels": 1, "out_channels": 1}, 1.0), EDM(1.0))

    with pytest.raises(ValueError, match="gradient_checkpointing"):
        run(unet, FastNetworks("aot_eager"), gradient_checkpointing=True)
    run(unet, FastNetworks("none"), gradient_checkpointing=True)


def test_cuda_graphs_of_sharded_weights_are_refused():
    fast = FastNetworks(mode="reduce-overhead")
    run_of = type("Trainer", (), {"strategy": ShardedStrategy()})
    with pytest.raises(ValueError, match="strategy"):
        fast.on_fit_start(run_of, distillation())
