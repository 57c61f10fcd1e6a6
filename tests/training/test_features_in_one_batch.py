"""Where the fake side alone learns, features of generated and real samples are read in one batch: the same logits."""

import pytest
import torch
from tiny_runs import GivenData, distillation, mlp, weights
from torch.utils._python_dispatch import TorchDispatchMode

from fdistill.data import Batch
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import EDM2UNet, SmallUNet, SongUNet, StockUNet, TwoExperts
from fdistill.objectives import FDistill
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.preconditioning import EDM
from fdistill.training.discrimination import NoisedInput, logit_of, logits_of_both
from fdistill.training.planning import dry_turn
from fdistill.training.turn_schedule import Learners

pytestmark = pytest.mark.system  # seconds, too many for make check

B = 3
STOCK = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "num_class_embeds": 2,
}
EDM2 = {"model_channels": 8, "channel_mult": (1, 2), "blocks_per_level": 1, "channels_per_head": 8}
NETWORKS = {
    "MLP": lambda: mlp(num_classes=2).network,
    "small UNet": lambda: SmallUNet(8, 1, (8, 8), num_classes=2),
    "EDM's UNet": lambda: SongUNet(
        8, 1, model_channels=8, blocks_per_level=1, attention_resolutions=[4], num_classes=2
    ),
    "EDM2's UNet": lambda: EDM2UNet(8, 1, 2, attention_resolutions=[4], **EDM2),
    "diffusers' UNet": lambda: StockUNet(STOCK),
    "two experts": lambda: TwoExperts(*(SmallUNet(8, 1, (8, 8), num_classes=2) for _ in range(2)), split=0.0),
}


def module_of(name, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Denoiser(NETWORKS[name](), EDM(0.5))
    changes = {"turn": "alternating", "fake_updates_per_student": 2, **changes}
    return distillation(teacher, FDistill(JensenShannon(), 0.1), **changes)


def in_two_passes(ratio, source, *both):
    return tuple(logit_of(ratio, source, at, source_learns=False) for at in both)


def samples(module, n=B):
    source = torch.Generator().manual_seed(1)
    x_t = [torch.randn(n, *module.teacher.sample_shape, generator=source) for _ in range(2)]
    labels = [torch.randint(2, (n,), generator=source) for _ in range(2)]
    sigma = 3 * torch.rand(n, generator=source) + 0.1
    return [NoisedInput(x, sigma, Condition({"labels": y})) for x, y in zip(x_t, labels, strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_one_batch_are_those_of_two(name):
    module = module_of(name)
    both = logits_of_both(module.ratio, module.teacher, *samples(module))
    apart = in_two_passes(module.ratio, module.teacher, *samples(module))
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


def test_a_turn_of_the_fake_side_evaluates_the_teacher_once_and_learns_what_it_learnt(monkeypatch):
    """Against two passes over the same draws: losses and gradients agree, the random numbers are the same."""
    found = []
    for logits in (logits_of_both, in_two_passes):
        monkeypatch.setattr("fdistill.training.distillation_turn.logits_of_both", logits)
        module = module_of("small UNet")
        evaluated, encode = [], module.teacher.network.encode
        module.teacher.network.encode = lambda *a, evaluated=evaluated, encode=encode: (
            evaluated.append(len(a[0])) or encode(*a)
        )
        monkeypatch.setattr(type(module), "global_step", 0)
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        real = GivenData(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(2)), 2).train_samples.copied()
        part = next(iter(module.micro_batches(8)))
        losses, *_ = module._learn(Batch(*real), part, Learners(student=False, fake=True))
        gradients = [p.grad for p in (*module.fake_score.parameters(), *module.ratio.parameters())]
        found.append((evaluated, losses, gradients, torch.rand(3, generator=part.whole)))
    (evaluated, losses, gradients, drawn), (evaluated_apart, *apart) = found
    assert (evaluated, evaluated_apart) == ([16], [8, 8])
    torch.testing.assert_close([losses, gradients], apart[:2], rtol=1e-4, atol=1e-6)
    assert torch.equal(drawn, apart[2])


class Operations(TorchDispatchMode):
    """How many are made: each is a kernel or more."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += 1
        return func(*args, **(kwargs or {}))


def test_it_is_the_same_arithmetic_in_fewer_operations(monkeypatch):
    found = []
    for logits in (logits_of_both, in_two_passes):
        monkeypatch.setattr("fdistill.training.distillation_turn.logits_of_both", logits)
        with Operations() as counted:
            flops = dry_turn(module_of("small UNet"), B, 0).flops
        found.append((flops, counted.made))
    (flops, made), (flops_apart, made_apart) = found
    assert flops == flops_apart
    assert made < made_apart


@pytest.mark.parametrize("how", [{"turn": "fused"}, {"discriminator": "fake_score"}])
def test_turns_in_which_the_pass_with_a_gradient_is_shared_keep_two(monkeypatch, how):
    """One batch would take the gradient to real samples through the encoder too, which nobody asks for."""
    monkeypatch.setattr("fdistill.training.distillation_turn.logits_of_both", None)
    module = module_of("small UNet", **({"fake_updates_per_student": 1} if "turn" in how else {}), **how)
    before = weights(module)
    dry_turn(module, B, 0)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())
