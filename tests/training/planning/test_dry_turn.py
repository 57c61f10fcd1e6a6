"""Counted turns: a dry turn is a real one without its arithmetic, and a turn is so many forward passes."""

import copy
import itertools

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from cases import slow_but
from tiny_runs import GivenData, distillation, fit, teacher_training
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fdistill.data import Batch
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, SmallUNet, SongUNet, StockUNet
from fdistill.objectives import DMD2, FDistill, SiD
from fdistill.theory.divergences import JensenShannon, ReverseKL
from fdistill.theory.preconditioning import EDM
from fdistill.training.planning import dry_turn, forward_flops, turns_of_run
from fdistill.training.planning.dry_turn import Meter, _dry, _fused_attention

pytestmark = pytest.mark.system  # seconds, too many for make check

B = 4
K = 5


def denoiser(widths=(16,), num_classes=3, resolution=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(resolution, 1, widths, num_classes=num_classes), EDM(0.5))


def images(teacher):
    return GivenData(torch.zeros(3 * B, *teacher.sample_shape), teacher.num_classes, batch_size=B)


class NoModules:
    """In place of torch's module tracker, which fails on modules that see a leaf with gradient under no_grad."""

    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass


class CountedTurns(L.Callback):
    """FLOPs of every real turn."""

    def __init__(self):
        self.flops = []

    def on_train_batch_start(self, *args):
        self.counter = FlopCounterMode(display=False)
        self.counter.mod_tracker = NoModules()
        self.counter.__enter__()

    def on_train_batch_end(self, *args):
        self.counter.__exit__(None, None, None)
        self.flops.append(self.counter.get_total_flops())


RUNS = {
    "reverse KL, warm-up": {"objective": FDistill(ReverseKL()), "turn": "alternating", "fake_score_warmup": 1},
    "DMD2, fake score's features": {"objective": DMD2(), "turn": "alternating", "discriminator": "fake_score"},
    "DMD2, R1": {"objective": DMD2(), "turn": "alternating", "r1_weight": 1.0},
    "DMD2, guided, instance noise": {"objective": DMD2(), "turn": "fused", "guidance": 2.0, "instance_noise": 0.1},
    "several steps": {"objective": DMD2(), "turn": "alternating", "renoise_levels": [1.0, 0.5]},
}


@pytest.mark.parametrize("run", slow_but(RUNS, *[*RUNS][:3]))
def test_dry_turns_cost_what_real_ones_do(run):
    """Exactly; a student of several steps on average, since each turn draws how many it makes."""
    module = distillation(denoiser(), fake_updates_per_student=2, **RUNS[run])
    turns = 3 + module.turn_schedule.warmup
    kinds = turns_of_run(module, turns)
    dry = {name: dry_turn(module, B, kind.example).flops for name, kind in kinds.items()}
    counted = CountedTurns()
    fit(module, turns, images(module.student), callbacks=[counted])
    learns = [module.turn_schedule.learners(turn) for turn in range(turns)]
    names = {(True, True): "fused", (True, False): "student", (False, True): "fake"}
    expected = [dry[names[sides]] for sides in learns]
    if len(module.levels) > 1:
        forward, _ = forward_flops(module.student, B)
        missing = [(real - mean) / forward for real, mean in zip(counted.flops, expected, strict=True)]
        assert set(missing) <= {-1.0, 0.0, 1.0}
    else:
        assert counted.flops == expected


def test_teacher_training_is_three_forward_passes_less_the_input_s_gradient():
    module = teacher_training(denoiser().network, label_dropout=0.1)
    counted = CountedTurns()
    cost = dry_turn(module, B, 0)
    fit(module, 1, images(module.denoiser), callbacks=[counted])
    forward, _ = forward_flops(module.denoiser, B)
    assert counted.flops == [cost.flops]
    assert 2.9 < cost.flops / forward < 3


def heads(module, batch):
    """FLOPs of the discriminator's heads for one batch of features."""
    ratio = copy.deepcopy(module.ratio)
    half = module.teacher.encode(
        torch.zeros(batch, *module.teacher.sample_shape), torch.ones(batch), torch.zeros(batch, dtype=torch.long)
    )
    with FlopCounterMode(display=False) as counter:
        ratio.logit(half, None, None, None)
    return counter.get_total_flops()


def anatomy(objective, turn="alternating", **more):
    """Of each kind of turn: FLOPs; F, E and the heads H; on widths at which the first convolution weighs nothing."""
    module = distillation(denoiser((16, 32, 64), resolution=16), objective=objective, turn=turn, **more)
    forward, encoder = forward_flops(module.student, B)
    kinds = turns_of_run(module, 60)
    costs = {name: dry_turn(module, B, kind.example).flops for name, kind in kinds.items()}
    return costs, forward, encoder, heads(module, B) if module.ratio is not None else 0


def test_turns_have_the_published_anatomy():
    """Student turn 5 F + E, fake turn 4 F + 2 E, and the heads: 2 H (to the sample), 4 H (two batches).

    Within 1 %: a backward pass costs twice its forward one but for the gradient of the first layer's input.
    """
    costs, forward, encoder, head = anatomy(FDistill(JensenShannon(), 0.1))
    assert costs["student"] == pytest.approx(5 * forward + encoder + 2 * head, rel=0.01)
    assert costs["fake"] == pytest.approx(4 * forward + 2 * encoder + 4 * head, rel=0.01)


def test_a_fused_turn_shares_the_samples_and_what_is_said_of_them():
    costs, forward, encoder, head = anatomy(FDistill(JensenShannon(), 0.1), "fused")
    assert costs["fused"] == pytest.approx(7 * forward + 2 * encoder + 6 * head, rel=0.01)


def test_without_a_ratio_no_features_are_computed():
    costs, forward, _, _ = anatomy(FDistill(ReverseKL()))
    assert costs["student"] == pytest.approx(5 * forward, rel=0.01)
    assert costs["fake"] == pytest.approx(4 * forward, rel=0.01)


def test_the_fisher_side_goes_back_through_both_networks():
    costs, forward, _, _ = anatomy(SiD())
    assert costs["student"] == pytest.approx(7 * forward, rel=0.01)


@pytest.mark.parametrize(("reuse_generated", "passes"), [(False, 25), (True, 20)])
def test_a_cycle_of_five_costs_so_many_forward_passes_11_encoders_and_the_heads(reuse_generated, passes):
    """Every fake turn draws its own samples, or takes those of the last student turn."""
    costs, forward, encoder, head = anatomy(FDistill(JensenShannon(), 0.1), reuse_generated=reuse_generated)
    cycle = costs["student"] + K * costs["fake"]
    assert cycle == pytest.approx(passes * forward + 11 * encoder + (4 * K + 2) * head, rel=0.01)


def test_flops_are_proportional_to_the_batch():
    module = distillation(denoiser(), objective=DMD2())
    assert dry_turn(module, 12, 5).flops == 3 * dry_turn(module, 4, 5).flops


def test_micro_batches_cost_the_same_and_need_less_memory_at_once():
    whole, parts = (dry_turn(distillation(denoiser(), objective=DMD2(), accumulate=n), 16, 5) for n in (1, 4))
    assert parts.flops == whole.flops
    assert parts.gradients == whole.gradients
    assert parts.peak_bytes < whole.peak_bytes


def test_parameters_on_the_meta_device_serve_as_well_and_the_module_stays_as_it_is():
    module = distillation(denoiser(), objective=DMD2())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    cost = dry_turn(module, B, 5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert dry_turn(copy.deepcopy(module).to("meta"), B, 5) == cost


def test_a_turn_that_must_see_numbers_is_computed_and_scaled():
    class Deciding(DMD2):
        def loss(self, at):
            assert at.sigma.min() > 0
            return super().loss(at)

    plain, deciding = (distillation(denoiser(), objective=objective()) for objective in (DMD2, Deciding))
    assert dry_turn(deciding, 6, 5).flops == dry_turn(plain, 6, 5).flops


def test_gradients_are_those_of_what_learns():
    module = distillation(denoiser(), objective=DMD2(), turn="alternating", fake_updates_per_student=2)
    size = sum(p.nbytes for p in module.student.parameters())
    assert dry_turn(module, B, 2).gradients == {"student": size}
    assert dry_turn(module, B, 0).gradients == {
        "fake_score": size,
        "ratio": sum(p.nbytes for p in module.ratio.parameters()),
    }


def test_live_bytes_grow_and_fall_with_tensors():
    with Meter() as live:
        a = torch.empty(10, device="meta")
        b = a + 1
        assert live.now == 80
        del b
        c = torch.empty(5, device="meta")
        view = c[:2]
        assert (live.now, live.peak) == (60, 80)
    del a, c, view
    assert live.now == 0


def test_views_of_what_was_there_before_are_no_bytes_of_a_turn():
    weight = torch.empty(7, 5, device="meta")
    with Meter() as live:
        turned = weight.t()
        product = torch.empty(3, 5, device="meta") @ turned
        weight.add_(1)
        assert live.now == product.nbytes


@pytest.mark.parametrize("batch", [1, 64])
def test_weights_that_outweigh_the_activations_are_no_bytes_of_a_turn(batch):
    """Linear layers alone, whose products read views of their weights."""
    module = distillation(Denoiser(MLP(dim=2, width=256, depth=2), EDM(1.0)), SiD(), turn="fused")
    real = allocated(module, torch.zeros(batch, 2))
    assert dry_turn(module, batch, 0).peak_bytes == pytest.approx(real, rel=0.1)


def test_attention_is_counted():
    teacher = Denoiser(SongUNet(8, 1, model_channels=8, blocks_per_level=1, attention_resolutions=[8]), EDM(0.5))
    module = distillation(teacher, objective=DMD2(), turn="fused")
    counted = CountedTurns()
    cost = dry_turn(module, B, 0)
    fit(module, 1, images(teacher), callbacks=[counted])
    assert cost.flops == pytest.approx(counted.flops[0], rel=0.05)  # the kernel of attention depends on the device


def allocated(module, batch):
    """The most bytes that torch's allocator of the CPU held for a real turn, above those before it."""
    copied = _dry(module, 0)
    given = Batch(batch, torch.arange(len(batch)) % 3, Condition({"labels": torch.arange(len(batch)) % 3}))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        copied.training_step(given, 0)
    events = sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=time_of)
    return max(itertools.accumulate(event.nbytes() for event in events))


def time_of(event):
    return event.start_ns()


@pytest.mark.parametrize("checkpointed", slow_but([False, True], True))
def test_bytes_of_a_turn_on_the_meta_device_are_those_that_a_real_one_allocates(checkpointed):
    """Attention, convolutions and linear layers of a network of diffusers; what kernels use for themselves is above."""
    blocks = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    sizes = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16]}
    more = {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8, "num_class_embeds": 4}
    teacher = Denoiser(StockUNet({**sizes, **blocks, **more}, 1.0, True), EDM(0.5))
    module = distillation(teacher, SiD(), turn="fused", gradient_checkpointing=checkpointed)
    batch = 16
    real = allocated(module, torch.zeros(batch, *teacher.sample_shape))
    assert dry_turn(module, batch, 0).peak_bytes == pytest.approx(real, rel=0.1)


def test_attention_keeps_no_matrix_of_scores():
    """Four times the tokens, four times the bytes; a matrix of all pairs would take sixteen times as many."""
    peaks = []
    for side in (32, 64):
        q, k, v = (torch.empty(1, 2, side * side, 8, device="meta", requires_grad=True) for _ in range(3))
        mask = torch.ones(1, 1, 1, side * side, dtype=torch.bool, device="meta")
        with Meter() as meter, _fused_attention():
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
        peaks.append(meter.peak)
    assert peaks[1] == pytest.approx(4 * peaks[0], rel=0.01)


def test_bad_input_is_refused_in_one_line():
    module = distillation()
    with pytest.raises(ValueError, match="batch_size"):
        dry_turn(module, 0, 0)
    with pytest.raises(ValueError, match="turn"):
        turns_of_run(module, 0)
