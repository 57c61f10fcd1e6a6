"""Turns on CUDA: exact continuation, bf16, compiled networks and CUDA graphs beside eager ones, and a NaN."""

import functools
import json

import lightning.pytorch as L
import pytest
import torch
from cuda_runs import ALTERNATING, FUSED, RUNS, distilled, images, on_gpu, unet
from tiny_runs import distillation, mlp, ring, weights

from fdistill.training import NonFiniteError
from fdistill.training.callbacks import FastNetworks
from fdistill.training.loggers import JsonlLogger

pytestmark = pytest.mark.gpu

CONTINUED = {
    "fused": {"turn": "fused"},
    "alternating, samples reused": {"reuse_generated": True, **ALTERNATING},
    "two micro-batches": {"accumulate": 2, **ALTERNATING},
}


def differing(a, b):
    """Names of the weights and buffers that differ in any bit."""
    return [name for name, value in weights(a).items() if not torch.equal(value.cpu(), weights(b)[name].cpu())]


@pytest.mark.parametrize("name", CONTINUED)
def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(name, tmp_path):
    """With deterministic sums, and a discriminator of the sample: pooling of features has no deterministic gradient."""

    def build():
        return distillation(mlp(), adversarial_weight=0.1, discriminator="sample", **FUSED | CONTINUED[name])

    run = functools.partial(on_gpu, data=ring(), deterministic=True)
    run(whole := build(), 8)
    run(first := build(), 5).save_checkpoint(tmp_path / "a.ckpt")
    run(second := build(), 8, resume_from=tmp_path / "a.ckpt")
    assert differing(whole, second) == []
    assert differing(whole, first)


@pytest.mark.parametrize("name", RUNS)
def test_bf16_trains_and_its_losses_are_near_those_of_float32(name, tmp_path):
    means = {}
    for precision in ("32-true", "bf16-mixed"):
        folder = tmp_path / precision
        settings = {"precision": precision, "log_every_n_steps": 1, "logger": JsonlLogger(str(folder))}
        module = distilled(name, 24, **settings)
        assert all(value.isfinite().all() for value in weights(module).values())
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss/fake_score"] for line in lines if "loss/fake_score" in line]
        means[precision] = sum(losses) / len(losses)
    assert means["bf16-mixed"] == pytest.approx(means["32-true"], rel=0.05)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", RUNS)
def test_compiled_networks_and_cuda_graphs_make_the_turns_of_eager_ones(name, mode):
    """Plain descent, so that a difference of rounding stays one; enough cycles to record graphs and to replay them."""
    descent = dict.fromkeys(FUSED, functools.partial(torch.optim.SGD, lr=1e-3))
    fast = distilled(name, 15, module=descent, callbacks=[FastNetworks(mode=mode, tf32=False)])
    eager = distilled(name, 15, module=descent)
    for key, value in weights(eager).items():
        torch.testing.assert_close(weights(fast)[key], value, rtol=1e-3, atol=1e-4)


def test_cuda_graphs_keep_what_survives_a_turn():
    """The reused samples of a student's turn are read in later turns, when its graphs have been replayed again."""
    kept = []

    class Kept(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if module.last_generated is not None:
                kept.append((trainer.global_step, module.last_generated[0], module.last_generated[0].clone()))

    distilled("alternating, samples reused", 18, callbacks=[FastNetworks(mode="reduce-overhead"), Kept()])
    assert len(kept) == 18
    assert all(torch.equal(now, then) for _, now, then in kept)


class Spoiled(L.Callback):
    """Makes the fake score infinite in one turn, and keeps all parameters as they were before it."""

    def __init__(self, turn):
        self.turn, self.before = turn, None

    def on_fit_start(self, trainer, module):
        def spoil(_, inputs, output):
            return torch.full_like(output, torch.inf) if trainer.global_step == self.turn else None

        module.fake_score.network.output.register_forward_hook(spoil)

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == self.turn:
            self.before = {name: parameter.clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", ["fused", "alternating"])
def test_a_nan_stops_the_run_before_weights_move_although_the_host_hears_of_it_later(name):
    module = distillation(unet(), **FUSED | RUNS[name])
    with pytest.raises(NonFiniteError, match="fake_score"):
        on_gpu(module, 8, data=images(), callbacks=[spoiled := Spoiled(3)])
    assert module.trainer.global_step == 4  # the check of turn 3 was read in turn 4, before its step
    now = dict(module.named_parameters())
    moved = [n for n, before in spoiled.before.items() if not torch.equal(before.cpu(), now[n].cpu())]
    assert [name for name in moved if not name.startswith("ema.")] == []
