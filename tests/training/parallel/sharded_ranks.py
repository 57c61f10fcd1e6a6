"""What two processes do whose networks are sharded."""

import functools

import torch
import torch.distributed as dist
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch.callbacks import Callback
from stock_models import SMALL_UNET
from tiny_runs import GivenData, distillation, fit, mlp, ring, teacher_training, weights
from torch.distributed.tensor import DTensor

from fdistill.core.distributed import gathered, is_sharded, whole
from fdistill.models.denoiser import Denoiser
from fdistill.models.learned_uncertainty import LearnedUncertainty
from fdistill.models.networks import MLP, EDM2UNet, SmallUNet, SongUNet, StockDiT, StockUNet, TwoExperts
from fdistill.objectives import DMD2, Fisher, SiD
from fdistill.theory.preconditioning import EDM
from fdistill.training.averaging.ema import EMA
from fdistill.training.averaging.power_ema import PowerEMA
from fdistill.training.callbacks import DiversityCallback, MongeGap, PowerAverages, SampleGrid, SeeSaw, StudentDistance
from fdistill.training.parallel import ShardedStrategy

SHARDED = {
    "teacher": lambda: teacher_training(loss_weight=LearnedUncertainty(1.0)),
    "fused": lambda: distillation(adversarial_weight=0.1, student=mlp(seed=1), r1_weight=0.1, r1_step=0.1),
    "alternating, several steps": lambda: distillation(
        adversarial_weight=0.1, turn="alternating", fake_updates_per_student=1, renoise_levels=[0.5]
    ),
    "features of the fake score": lambda: distillation(
        adversarial_weight=0.1, discriminator="fake_score", r1_weight=0.1, r1_step=0.1
    ),
    "gradients of the networks": lambda: distillation(
        objective=Fisher(), student=mlp(seed=1), fake_score=mlp(seed=2), imitation=0.9
    ),
}
WAYS = {
    "exact penalty, whole teacher": (
        {"r1_weight": 0.1, "student": mlp(seed=1)},
        lambda: ShardedStrategy(shard_teacher=False),
    ),
    "guided, held in bfloat16": (
        {"guide": mlp(seed=3), "guidance": 2.0, "teacher_dtype": "bfloat16"},
        lambda: "sharded",
    ),
    "all at once": (
        {"teacher_dtype": "bfloat16", "meta_start": True, "accumulate": 2, "objective": DMD2(0.1, "sigma")},
        lambda: ShardedStrategy(cpu_offload=True),
    ),
}
"""Changes of a distillation, and the strategy that shards it."""

NETWORKS = {
    "SmallUNet": lambda: SmallUNet(4, 1, (4, 4), num_classes=3),
    "SongUNet": lambda: SongUNet(4, 1, 3, 8, (1, 1), 2, 2, 1, (), embedding="fourier", encoder="residual"),
    "StockDiT": lambda: StockDiT(
        {"sample_size": 4, "patch_size": 2, "num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 8}
        | {"in_channels": 1, "num_embeds_ada_norm": 3, "norm_num_groups": 1}
    ),
    "StockUNet": lambda: StockUNet(
        SMALL_UNET | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 4}, 1.0, True
    ),
    "EDM2UNet": lambda: EDM2UNet(4, 1, 3, 8, (1,), blocks_per_level=1, attention_resolutions=(), channels_per_head=8),
    "TwoExperts": lambda: TwoExperts(MLP(width=8, depth=2), MLP(width=8, depth=2), 0.0),
}
DESCENT = dict.fromkeys(("student_optimizer", "fake_score_optimizer"), functools.partial(torch.optim.SGD, lr=0.1))
RECOMPUTED = ("StockDiT", "StockUNet")
STARTED = ("SongUNet", "StockDiT", "EDM2UNet", "TwoExperts")  # an MLP is among the ways
REPLICATED = ("EDM2UNet", "TwoExperts")  # which the other strategy refuses


def whole_weights(module):
    return {name: whole(value).clone() for name, value in weights(module).items()}


def held(module):
    """Weights on this rank, and all, of each tensor in parts."""
    return {name: (p.to_local().numel(), p.numel()) for name, p in module.named_parameters() if isinstance(p, DTensor)}


def descends(build, **changes):
    """A distillation by plain descent, whose weights differ by what its gradients differ."""
    return distillation(build, **DESCENT, **{"adversarial_weight": 0.1} | changes)


def network(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(NETWORKS[name](), EDM(0.5))


def given(name):
    denoiser = network(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, *denoiser.sample_shape, generator=generator)
    return GivenData(x, denoiser.num_classes, batch_size=4)


def starts(name, rank):
    """What a run with numbers on rank 0 alone starts from, and what its turn then learns; and the same of another."""
    strategy = "replicated" if name in REPLICATED else "sharded"
    module, plain, watch = descends(network(name), meta_start=True), descends(network(name)), Start()
    bare = {parameter.is_meta for parameter in module.parameters()}
    expected = weights(plain)
    fit(module, 1, given(name), devices=2, strategy=strategy, callbacks=[watch])
    fit(plain, 1, given(name), devices=2, strategy="replicated")
    return {"bare": bare == {rank > 0}, "start": watch.start, "expected": expected, "held": watch.held} | {
        "learnt": whole_weights(module),
        "replicated": weights(plain),
    }


class Start(Callback):
    """Whole weights before the first turn, and the share of them that is here."""

    def on_train_start(self, trainer, module):
        self.start, self.held = whole_weights(module), held(module)


class Watch(Callback):
    """How many blocks of a network are whole at once while one is asked, and how much FSDP2 remembers of passes."""

    def __init__(self):
        self.most, self.passes = [], []

    def on_train_batch_start(self, trainer, module, *_):
        for denoiser in (module.teacher, module.student, module.fake_score) if not self.passes else ():
            units = denoiser.network.units()
            for unit in units:
                unit.register_forward_pre_hook(lambda *_, units=units: self.look(units))
        order = getattr(module.teacher._get_fsdp_state()._comm_ctx, "post_forward_order", [])
        self.passes.append((len(order), sum(len(group._post_forward_indices) for group in order)))

    def look(self, units):
        self.most.append(sum(not is_sharded(unit) for unit in units))


def watched():
    module, watch = distillation(mlp(), objective=DMD2(0.0, "sigma")), Watch()
    fit(module, 4, devices=2, strategy="sharded", callbacks=[watch])
    return {"most": max(watch.most), "asked": len(watch.most), "passes": watch.passes}


class WholeAverages(Callback):
    """Averages of the whole student, beside those that move part by part."""

    def on_train_start(self, trainer, module):
        self.student = mlp(seed=1)
        self.ema, self.power = EMA(self.student, module.ema.decay), PowerEMA(self.student, [0.1])

    def on_train_batch_end(self, trainer, module, *_):
        self.student.load_state_dict({name: whole(value) for name, value in module.student.state_dict().items()})
        self.ema.update(self.student, trainer.global_step - 1)
        self.power.update(self.student)


def averaged(folder):
    """The averages of a run in parts, and those of the whole weights that it had after each turn."""
    module, tracked, beside = (
        distillation(student=mlp(seed=1)),
        PowerAverages([0.1], every_n_updates=9),
        WholeAverages(),
    )
    fit(module, 4, devices=2, strategy="sharded", callbacks=[tracked, beside], folder=str(folder / "averaged"))
    parts = [*whole_weights(module.ema.average).values(), *tracked.state_dict()["averages"][0]]
    return {"parts": parts, "whole": [*weights(beside.ema.average).values(), *beside.power.wholes()[0]]}


def measured(strategy, folder):
    """What all callbacks that sample see of a run, in unequal batches and on one rank; and the average itself."""
    module = distillation(adversarial_weight=0.1)
    made = [
        StudentDistance(every_n_turns=2, num_samples=51),
        SampleGrid(every_n_turns=2, num_samples=4),
        MongeGap(every_n_updates=2, num_samples=20),
        SeeSaw(num_samples=20, num_bins=2),
        DiversityCallback(every_n_updates=2, num_samples=101),
    ]
    checks = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    data = ring(batch_size=31)  # 64 held-out samples are 2 batches on each rank, of which one has a single sample
    run = fit(module, 2, data, devices=2, strategy=strategy, callbacks=made, folder=str(folder / strategy), **checks)
    model = module.generative_model()
    with model.whole():
        alone = model.sample(model.noise(5, 0)) if run.global_rank == 0 else None
    with gathered(module.ema.average):
        average = {name: value.clone() for name, value in module.ema.average.named_parameters()}
    files = sorted(path.name for path in (folder / strategy).rglob("*.png"))
    numbers = {name: float(value) for name, value in run.callback_metrics.items()}
    return {"numbers": numbers, "alone": alone, "files": files, "average": average, "state": whole_weights(module.ema)}


def skips(rank):
    """One turn of four in which one rank's noise is NaN, and what the others leave."""
    module = distillation(adversarial_weight=0.1, skip_nonfinite=1)
    normal, before = module.normal, {}

    def broken(shape, generator):
        if module.global_step == 2:
            before.update({} if before else whole_weights(module))
            return torch.full(shape, torch.nan) if rank else normal(shape, generator)
        return normal(shape, generator)

    class After(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                now = whole_weights(module)
                module.moved = {name for name, value in before.items() if not torch.equal(value, now[name])}

    module.normal = broken
    fit(module, 4, devices=2, strategy="sharded", callbacks=[After()])
    finite = all(value.isfinite().all() for value in whole_weights(module).values())
    return {"skipped": module.guard.skipped, "moved": module.moved, "finite": finite}


def mixed():
    """Two turns under bf16-mixed, sharded and not, and in float32."""
    runs = {"sharded": ("sharded", "bf16-mixed"), "replicated": ("replicated", "bf16-mixed")}
    runs["float32"] = ("replicated", "32-true")
    found = {}
    for name, (strategy, precision) in runs.items():
        module = descends(network("SmallUNet"))
        fit(module, 2, given("SmallUNet"), devices=2, strategy=strategy, precision=precision)
        found[name] = whole_weights(module)
    return found


def recomputed():
    """Turns that go back through all networks: plain, and in parts whose activations are computed again."""
    found = {}
    for name in RECOMPUTED:
        ends = []
        for strategy, again in (("replicated", False), ("sharded", True)):
            module, calls = distillation(network(name), SiD(), gradient_checkpointing=again, **DESCENT), []
            inner = next(part for part in module.student.modules() if isinstance(part, Attention | ResnetBlock2D))
            inner.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            fit(module, 2, given(name), devices=2, strategy=strategy)
            ends.append((whole_weights(module), len(calls)))
        found[name] = ends
    return found


def sharded(rank, folder):
    devices = dist.get_world_size()
    found = {}
    for name, build in SHARDED.items():
        replicated, parts = build(), build()
        turns = 4 if name == "fused" else 2  # that one is resumed below
        fit(replicated, turns, devices=devices, strategy="replicated")
        fit(parts, turns, devices=devices, strategy="sharded")
        found[name] = {"replicated": weights(replicated), "sharded": whole_weights(parts), "held": held(parts)}
    for name, (changes, strategy) in WAYS.items():
        plain = {key: value for key, value in changes.items() if key != "meta_start"}
        replicated, parts = descends(None, **plain), descends(None, **changes)
        fit(replicated, 2, devices=devices, strategy="replicated")
        fit(parts, 2, devices=devices, strategy=strategy())
        devices_of = {p.device.type for p in parts.parameters()}
        found[name] = {"replicated": weights(replicated), "sharded": whole_weights(parts), "devices": devices_of}
    build, path = SHARDED["fused"], folder / "sharded.ckpt"
    watching = [SampleGrid(every_n_turns=2, num_samples=4), PowerAverages([0.1], every_n_updates=2)]
    first = build()
    run = fit(first, 2, devices=devices, strategy="sharded", callbacks=watching, folder=str(folder / "sharded"))
    run.save_checkpoint(path)
    resumed, again = build(), PowerAverages([0.1], every_n_updates=2)
    more = {"resume_from": path, "callbacks": [again], "folder": str(folder / "resumed")}
    fit(resumed, 4, devices=devices, strategy=ShardedStrategy(cpu_offload=True), **more)
    averages = again.state_dict()["averages"][0]
    return found | {
        "resumed": whole_weights(resumed),
        "resumed averages": averages,
        "saved": whole_weights(first),
        "starts": {name: starts(name, rank) for name in STARTED},
        "watched": watched(),
        "averaged": averaged(folder),
        "measured": {strategy: measured(strategy, folder / "measured") for strategy in ("replicated", "sharded")},
        "skips": skips(rank),
        "mixed": mixed(),
    }
