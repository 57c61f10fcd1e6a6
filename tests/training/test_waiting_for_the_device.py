"""No turn has the host wait for its device: nothing is read back, and nothing small is copied there.

Tensors without numbers stand for a device: whoever reads one fails. What remains of a turn, from the check of its
gradients to the moving average, is made on the CPU under a watch for operations that wait on CUDA.
"""

import lightning.pytorch as L
import pytest
import torch
from cases import slow_but
from tiny_runs import GivenData, distillation, fit, mlp, teacher_training
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fdistill.data import Batch
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.models.condition import Condition
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet, TwoExperts
from fdistill.objectives import (
    DMD,
    DMD2,
    Adversarial,
    DiffInstruct,
    FDistill,
    MongeRegularised,
    ScoreOfMixture,
    SiD,
    SiDA,
    UniInstruct,
)
from fdistill.theory.divergences import ForwardKL, JensenShannon, SkewedJensenShannon
from fdistill.theory.preconditioning import EDM
from fdistill.training import GenerativeModule
from fdistill.training.planning.dry_turn import _dry

B = 4

KINDS = {
    "f-distill": {"objective": FDistill(JensenShannon(), 0.1)},
    "f-distill on samples": {"objective": FDistill(ForwardKL(), 0.1), "discriminator": "sample"},
    "reverse KL, no discriminator": {"objective": DiffInstruct()},
    "DMD2, fake score's features, imitation": {"objective": DMD2(), "discriminator": "fake_score", "imitation": 0.9},
    "DMD2, exact R1": {"objective": DMD2(), "r1_weight": 1.0},
    "DMD2, R1 by differences": {"objective": DMD2(), "r1_weight": 1.0, "r1_step": 0.1},
    "DMD2, guided, instance noise": {"objective": DMD2(), "guidance": 2.0, "instance_noise": 0.1},
    "score of mixture": {"objective": ScoreOfMixture()},
    "skewed Jensen-Shannon": {"objective": FDistill(SkewedJensenShannon(0.3))},
    "SiD": {"objective": SiD()},
    "SiDA": {"objective": SiDA(), "discriminator": "fake_score"},
    "Uni-Instruct": {"objective": UniInstruct(JensenShannon())},
    "adversarial": {"objective": Adversarial()},
    "several steps": {"objective": DMD2(), "renoise_levels": [1.0, 0.5]},
    "micro-batches": {"objective": FDistill(JensenShannon(), 0.1), "accumulate": 2},
}
TURNS = {"fused": {"turn": "fused"}, "alternating": {"turn": "alternating", "fake_updates_per_student": 1}}


class NothingCopied(TorchFunctionMode):
    """Refuses what brings numbers of the host to the device while it waits: torch.tensor there, and blocking copies."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.is_meta and not kwargs.get("non_blocking"):
            made = func in (torch.tensor, torch.as_tensor, torch.asarray) and not isinstance(args[0], torch.Tensor)
            moved = isinstance(args[0] if args else None, torch.Tensor) and args[0].device.type == "cpu"
            assert not made, f"{func.__name__} of {args[0]!r} copies it to the device"
            assert not moved, f"{func.__name__} copies a tensor of the host to the device"
        return out


def denoiser(classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(SmallUNet(8, 1, (8,), num_classes=classes), EDM(0.5))


def assert_turn_reads_nothing(module, turn):
    """One training step on tensors that hold nothing, as on a device whose numbers nobody has asked for."""
    dry = _dry(module, turn).to("meta")
    shape = next(iter(dry.denoisers().values())).sample_shape
    labels = torch.zeros(B, dtype=torch.int64, device="meta")
    batch = Batch(torch.zeros(B, *shape, device="meta"), labels, Condition({"labels": labels}))
    with NothingCopied():
        dry.training_step(batch, 0)
    assert all(weight.is_meta for network in dry.denoisers().values() for weight in network.parameters())


# the objectives' losses are the same in both kinds of turn; these differ in what a fused turn shares between them,
# which holds all that an alternating one does
FUSED = [
    "f-distill",
    "DMD2, fake score's features, imitation",
    "DMD2, exact R1",
    "SiDA",
    "several steps",
    "micro-batches",
]


@pytest.mark.parametrize(
    ("kind", "turns"),
    slow_but([(kind, "fused" if kind in FUSED else "alternating") for kind in KINDS], *[(k, "fused") for k in FUSED]),
)
def test_a_turn_reads_no_number_of_its_device(kind, turns):
    module = distillation(denoiser(), **KINDS[kind], **TURNS[turns])
    for turn in range(module.turn_schedule.cycle):
        assert_turn_reads_nothing(module, turn)


@pytest.mark.parametrize("how", [{"fake_label_dropout": 0.1, "fake_guidance": 2.0}, {"reuse_generated": True}])
def test_nor_does_one_with_dropped_labels_or_reused_samples(how):
    module = distillation(denoiser(), DMD2(), **TURNS["alternating"], **how)
    if "reuse_generated" in how:
        condition = Condition({"labels": torch.zeros(B, device="meta").long()})
        module.last_generated = (torch.zeros(B, 1, 8, 8, device="meta"), condition)
        module.cpu = module.to  # meta tensors have no copy on another device
    for turn in range(2):
        assert_turn_reads_nothing(module, turn)


def test_nor_does_training_a_teacher():
    assert_turn_reads_nothing(teacher_training(denoiser().network, label_dropout=0.1), 0)


def test_two_experts_and_exact_assignments_do_and_say_so():
    low, high = (denoiser().network for _ in range(2))
    experts = Denoiser(TwoExperts(low, high, -0.2), EDM(0.5))
    assert "read from the device" in TwoExperts.__doc__
    for module in (
        distillation(experts, DMD2()),
        distillation(denoiser(), MongeRegularised(DiffInstruct(), 0.1)),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            assert_turn_reads_nothing(module, 0)


def test_the_watch_sees_a_copy_and_a_reading():
    on_device = torch.zeros(2, device="meta")
    with NothingCopied():
        with pytest.raises(AssertionError, match="as_tensor"):
            torch.as_tensor(0.5, device="meta")
        with pytest.raises(AssertionError, match="tensor"):
            torch.zeros(2).to("meta")
        torch.full((), 0.5, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_device.sum().item()


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class NothingRead(TorchDispatchMode):
    """Refuses operations that wait for the device on CUDA: reading a number, or a result of unknown size."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [index for index in args[1] if index is not None] if name in ("index", "index_put_") else []
        assert name not in WAITING, f"{name} waits for the device"
        assert not any(mask.dtype == torch.bool for mask in masks), "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


class Watch(L.Callback):
    """From the start of a turn to its end, optimisers and averages included."""

    def __init__(self):
        self.turns = 0

    def on_train_batch_start(self, *args):
        self.mode = NothingRead()
        self.mode.__enter__()

    def on_train_batch_end(self, *args):
        self.mode.__exit__(None, None, None)
        self.turns += 1

    def on_exception(self, *args):
        self.mode.__exit__(None, None, None)


def fused_adam(parameters):
    return torch.optim.AdamW(parameters, 1e-3, fused=True)


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("kind", ["f-distill", "SiD", "DMD2, fake score's features, imitation"])
def test_nothing_is_read_when_gradients_are_checked_and_weights_and_averages_move(monkeypatch, kind, turns):
    monkeypatch.setattr(GenerativeModule, "checks_later", ("cpu",))
    optimizers = {"student_optimizer": fused_adam, "fake_score_optimizer": fused_adam}
    module = distillation(denoiser(), **KINDS[kind], **TURNS[turns], **optimizers)
    data = GivenData(torch.zeros(16, 1, 8, 8), 3, batch_size=B)
    fit(module, 4, data, callbacks=[watch := Watch()], log_every_n_steps=0)
    assert watch.turns == 4


def test_the_host_reads_where_an_optimiser_is_not_fused_and_where_turns_are_logged():
    module = distillation(mlp())
    read = torch.ones(2)
    with NothingRead():
        for waits in (lambda: float(read.sum()), lambda: read[read > 0], lambda: read.nonzero()):
            with pytest.raises(AssertionError, match="device"):
                waits()
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        fit(module, 1, callbacks=[Watch()])


def test_no_tensor_of_a_batch_is_waited_for_on_its_way_to_a_device():
    batch = Batch(
        torch.zeros(B, 2), torch.zeros(B), Condition({"text": torch.zeros(B, 3, 4), "mask": torch.zeros(B, 3)})
    )
    with NothingCopied():
        moved = GivenData(torch.zeros(B, 2), batch_size=B).transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {moved.x.device.type, *(value.device.type for value in moved.condition.values())} == {"meta"}


def test_pairs_and_reused_samples_lie_where_the_networks_are(tmp_path):
    pairs = TeacherPairs(torch.zeros(8, 1, 8, 8), torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    pairs.save(tmp_path / "pairs.safetensors")
    module = distillation(denoiser(), DMD(), pairs=str(tmp_path / "pairs.safetensors"))
    asked = []
    module.pairs.to = lambda device: asked.append(device) or pairs
    fit(module, 1, GivenData(torch.zeros(16, 1, 8, 8), 3, batch_size=B))
    assert asked == [module.device]
