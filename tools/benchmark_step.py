"""Milliseconds of a student turn, a fake turn and a cycle of the trainer, beside a bare loop of the same arithmetic.

    python tools/benchmark_step.py --network digits --batch 64
    python tools/benchmark_step.py --network cifar10 --batch 4 --cycles 3
    python tools/benchmark_step.py --network imagenet64 --batch 64 --device cuda --precision bf16-mixed --fast --fused
    python tools/benchmark_step.py --network imagenet64 --batch 64 --device cuda --tf32 --fused
    python tools/benchmark_step.py --other my_module:turns

f-distill (Jensen-Shannon, adversarial term on the teacher's features) in alternating turns, five of the fake side for
each of the student. The bare loop has the same networks, optimisers, clipping and moving average, and nothing around
them: no Lightning, loader, checks, loggers; with --fast there is a second one, of compiled networks. --other names a
function of a `Parts` that returns the two turns of another implementation on such networks. All take cycles in turn in
one process; medians, and ratios to the bare loop. FLOPs are counted over a bare cycle, and the ceiling is a matrix
product of the same precision in the same run. Peak memory is what a cycle needs above what lies there at its start.
"""

import argparse
import copy
import importlib
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fdistill.core.atomic_files import write_json
from fdistill.data import GenerativeDataModule, InMemorySplit
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet, SongUNet, StockUNet
from fdistill.objectives import FDistill, NoisedSamples, denoising_loss, discriminator_loss
from fdistill.objectives.log_ratio import RatioEstimator
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import DistillationModule
from fdistill.training.averaging.ema import EMA
from fdistill.training.callbacks import FastNetworks
from fdistill.training.student_gradient import student_gradient

ADM = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [192, 384, 576, 768],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "attention_head_dim": 64,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_class_embeds": 1000,
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits": lambda: SmallUNet(8, 1, (32, 64), num_classes=10),
    "cifar10": lambda: SongUNet(dropout=0.0),
    "imagenet64": lambda: StockUNet(ADM),
}
SIGMA_INIT, SIGMA_DATA, K = 5.0, 0.5, 5
LEVELS = LogNormal(-0.5, 1.2)
OBJECTIVE = FDistill(JensenShannon(), adversarial_weight=0.1)
Turn = Callable[[Tensor, Tensor | None], None]
"""Real samples [B, ...] and their labels."""


class Parts(NamedTuple):
    """What an implementation gets: networks of its own, in training mode where they learn."""

    teacher: Denoiser
    student: Denoiser
    fake_score: Denoiser
    ratio: RatioEstimator
    ema: EMA
    student_optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer
    autocast: Callable[[], AbstractContextManager[Any]]


class Noise(GenerativeDataModule):
    """Standard normal "images" with labels; the arithmetic does not care."""

    def __init__(self, denoiser: Denoiser, batch_size: int) -> None:
        super().__init__(batch_size)
        self.denoiser = denoiser

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.denoiser.sample_shape

    @property
    def num_classes(self) -> int:
        return self.denoiser.num_classes

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        n = 4 * self.batch_size
        x = torch.randn(n, *self.sample_shape, generator=torch.Generator().manual_seed(0))
        split = InMemorySplit(x, torch.arange(n) % max(self.num_classes, 1))
        return split, split

    def spec(self) -> dict[str, Any]:
        return {"class_path": "Noise", "init_args": {}}


def bare_turns(parts: Parts) -> tuple[Turn, Turn]:
    """The student's turn and the fake side's, written out."""
    device = next(parts.student.parameters()).device

    def noised(x: Tensor) -> tuple[Tensor, Tensor]:
        sigma = LEVELS.quantile(torch.rand(len(x), device=device).clamp(1e-6, 1 - 1e-6))
        return x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * torch.randn_like(x), sigma

    def generated(real: Tensor, labels: Tensor | None) -> Tensor:
        start = SIGMA_INIT * torch.randn_like(real)
        return parts.student(start, start.new_full((len(real),), SIGMA_INIT), labels)

    def step(networks: list[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        for network in networks:
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def student_turn(real: Tensor, labels: Tensor | None) -> None:
        with parts.autocast():
            x = generated(real, labels)
            leaf = x.detach().requires_grad_()
            x_t, sigma = noised(leaf)
            half = parts.teacher.encode(x_t, sigma, labels)
            with torch.no_grad():
                at = NoisedSamples(leaf, x_t, sigma, SIGMA_DATA, labels)
                at = at._replace(teacher=parts.teacher.finish(half), fake_score=parts.fake_score(x_t, sigma, labels))
            logit = parts.ratio.logit(half, x_t, sigma, labels)
            at = at._replace(logit=logit.float(), log_ratio=parts.ratio.log_ratio(logit, sigma))
            gradient = student_gradient(OBJECTIVE.loss(at), at).x
        (x * gradient).sum().backward()
        step([parts.student], parts.student_optimizer)
        parts.ema.update(parts.student, 1000)

    def fake_turn(real: Tensor, labels: Tensor | None) -> None:
        with parts.autocast():
            with torch.no_grad():
                x = generated(real, labels)
                x_t, sigma = noised(x)
                real_t = real + (x_t - x)
                twice = None if labels is None else labels.repeat(2)
                half = parts.teacher.encode(torch.cat([x_t, real_t]), sigma.repeat(2), twice)
            loss = denoising_loss(parts.fake_score(x_t, sigma, labels), x, sigma, SIGMA_DATA)
            logits = parts.ratio.logit(half, x_t, sigma, labels)  # the last three are not read: it sees features
            loss = loss + discriminator_loss(*logits.chunk(2))
        loss.backward()
        step([parts.fake_score, parts.ratio], parts.fake_optimizer)

    return student_turn, fake_turn


def begun(turn: Turn, fast: FastNetworks) -> Turn:
    """The turn, after what CUDA graphs are told at its start."""

    def run(real: Tensor, labels: Tensor | None) -> None:
        fast.on_train_batch_start()
        turn(real, labels)

    return run


class Stopwatch(L.Callback):
    """Times the trainer's turns from start to start; after each cycle the others take one, outside of that time."""

    def __init__(self, others: dict[str, tuple[Turn, Turn]], device: torch.device) -> None:
        self.others, self.device = others, device
        self.seconds: dict[str, dict[str, list[float]]] = {
            name: {"fake": [], "student": [], "cycle": []} for name in ("trainer", *others)
        }
        self.peak: dict[str, int] = {}
        self._base = 0
        self._turns: list[float] = []
        self._started: float | None = None

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: DistillationModule, batch: Any, batch_idx: int) -> None:
        now = self.now()
        if self._started is not None:
            self._turns.append(now - self._started)
        if len(self._turns) == K + 1:
            self._write("trainer", self._turns)
            self._turns = []
            self._peak("trainer")
            for name, (student_turn, fake_turn) in self.others.items():
                self._write(
                    name, [self._timed(fake_turn, batch) for _ in range(K)] + [self._timed(student_turn, batch)]
                )
                self._peak(name)
        self._started = self.now()

    def _timed(self, turn: Turn, batch: Any) -> float:
        started = self.now()
        turn(batch.x, batch.classes)
        return self.now() - started

    def _write(self, name: str, turns: list[float]) -> None:
        found = self.seconds[name]
        found["fake"] += turns[:K]
        found["student"].append(turns[K])
        found["cycle"].append(sum(turns))

    def _peak(self, name: str) -> None:
        if self.device.type == "cuda":
            self.peak[name] = max(self.peak.get(name, 0), torch.cuda.max_memory_allocated(self.device) - self._base)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)


def module_of(network: nn.Module, options: argparse.Namespace) -> DistillationModule:
    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, 1e-4, betas=(0.5, 0.99), weight_decay=0.0, fused=options.fused)

    return DistillationModule(
        Denoiser(network, EDM(SIGMA_DATA)), OBJECTIVE, LEVELS, adamw, adamw, SIGMA_INIT, turn="alternating"
    )


def fast_networks(options: argparse.Namespace) -> FastNetworks:
    return FastNetworks(options.backend, options.compile_mode)


def parts_of(module: DistillationModule, options: argparse.Namespace, fast: bool = False) -> Parts:
    """Copies of a module's networks, with optimisers of their own."""
    kind = torch.device(options.device).type
    teacher, student, fake, ratio, ema = (
        copy.deepcopy(part) for part in (module.teacher, module.student, module.fake_score, module.ratio, module.ema)
    )
    for part in (teacher, student, fake, ratio, ema):
        part.to(kind)
    if fast:
        for denoiser in (teacher, student, fake):
            fast_networks(options).hasten(denoiser)
        ema.average.to(memory_format=torch.channels_last)
    fake_parameters = [{"params": list(fake.parameters())}, {"params": list(ratio.parameters())}]
    return Parts(
        teacher,
        student,
        fake,
        ratio,
        ema,
        module.student_optimizer(student.parameters()),
        module.fake_score_optimizer(fake_parameters),
        lambda: torch.autocast(kind, torch.bfloat16) if options.precision == "bf16-mixed" else nullcontext(),
    )


def ceiling(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product in the precision of the run; the best of five."""
    side, kind = (8192 if device.startswith("cuda") else 1024), torch.float32
    if precision == "bf16-mixed":
        kind = torch.bfloat16
    a = torch.randn(side, side, device=device, dtype=kind)
    best = float("inf")
    for _ in range(6):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def cycle_flops(turns: tuple[Turn, Turn], x: Tensor, labels: Tensor) -> int:
    """Of one cycle, counted while it is made."""
    student_turn, fake_turn = turns
    with FlopCounterMode(display=False) as counter:
        for turn in (*[fake_turn] * K, student_turn):
            turn(x, labels)
    return counter.get_total_flops()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    network = NETWORKS[options.network]()
    module = module_of(network, options)
    parameters = sum(p.numel() for p in network.parameters())
    others = {"bare loop": bare_turns(parts_of(module, options))}
    if options.other:
        path, name = options.other.split(":")
        others[options.other] = getattr(importlib.import_module(path), name)(parts_of(module, options))
    data = Noise(module.teacher, options.batch)
    split = data.load_splits()[0]
    x, labels = (t[: options.batch].to(options.device) for t in (split.x, split.labels))
    flops = cycle_flops(others["bare loop"], x, labels)
    if options.fast:
        compiled = bare_turns(parts_of(module, options, fast=True))
        others["bare loop, compiled"] = tuple(begun(turn, fast_networks(options)) for turn in compiled)
    watch = Stopwatch(others, torch.device(options.device))
    callbacks = [watch, *([fast_networks(options)] if options.fast else [])]
    trainer = quiet_trainer(
        accelerator=torch.device(options.device).type,
        devices=1,
        precision=options.precision,
        max_steps=(options.cycles + 1) * (K + 1) + 1,
        callbacks=callbacks,
    )
    trainer.fit(module, datamodule=data)
    top = ceiling(options.device, options.precision)
    rows = {}
    for name, found in watch.seconds.items():
        ms = {turn: 1000 * statistics.median(values[K if turn == "fake" else 1 :]) for turn, values in found.items()}
        speed = {
            "mfu": flops / (ms["cycle"] / 1000) / top,
            "images_per_second": 1000 * (K + 1) * options.batch / ms["cycle"],
        }
        rows[name] = {**ms, **speed, "peak_bytes": watch.peak.get(name)}
    facts = {"network": options.network, "parameters": parameters, "batch": options.batch, "cycles": options.cycles}
    facts |= {"precision": options.precision, "device": torch.device(options.device).type, "fast": options.fast}
    facts |= {
        "cycle_flops": flops,
        "ceiling_flops": top,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {**facts, "peak_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "rows": rows}


def table(found: dict[str, Any]) -> str:
    bare = found["rows"]["bare loop"]
    lines = ["| | fake turn, ms | student turn, ms | cycle, ms | of the bare loop | MFU | peak GiB |", "|---" * 7 + "|"]
    for name, row in found["rows"].items():
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
        lines.append(
            f"| {name} | {row['fake']:.1f} | {row['student']:.1f} | {row['cycle']:.1f} | "
            f"{row['cycle'] / bare['cycle']:.3f} | {row['mfu']:.2f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cycles", type=int, default=10, help="measured ones; one more warms up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--tf32", action="store_true", help="float32 matrix products in TF32, as --fast does too")
    parser.add_argument("--fast", action="store_true", help="the trainer with FastNetworks, and a second bare loop")
    parser.add_argument("--backend", default="inductor", help="of torch.compile, with --fast")
    parser.add_argument("--compile-mode", help="of inductor, with --fast")
    parser.add_argument("--fused", action="store_true", help="fused AdamW, for all")
    parser.add_argument("--other", metavar="MODULE:FUNCTION")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_step"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    print(f"{found['parameters']:,} parameters, {found['cycle_flops'] / 1e9:.2f} GFLOP a cycle")
    print(table(found))
    write_json(options.out / f"{options.network}.json", found)


if __name__ == "__main__":
    main()
