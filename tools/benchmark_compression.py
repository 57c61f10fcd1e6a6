"""Gradient compression on digits, two processes: what a teacher and a student reach in equally many turns, and bytes.

    torchrun --standalone --nproc_per_node 2 tools/benchmark_compression.py --out runs/benchmark_compression

Every row has the same data, noise, start and settings; only the exchange of gradients differs. The teacher begins with
random weights; the student is distilled from --teacher (fused turns, Jensen-Shannon, adversarial term 0.3). Rows that
are already in --out are not repeated. Writes one JSON a row and table.md; all numbers are of the weights' averages.

Loss: EDM-weighted denoising of the 500 held-out digits at 8 noise draws. Fréchet distance: 2 draws of 500 samples
against them, in the features of one classifier. Bytes: what a rank hands to collectives in a student's turn.
"""

import argparse
import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from quiet_trainer import quiet_trainer
from torch import nn

from fdistill.core.atomic_files import write_json
from fdistill.core.distributed import rank, world_size
from fdistill.core.random import generator_for
from fdistill.data import Digits
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.metrics import frechet_distance
from fdistill.models.networks import SmallUNet
from fdistill.objectives import FDistill, denoising_loss
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.training import DistillationModule, GenerativeModule, TeacherModule
from fdistill.training.parallel import ReplicatedStrategy
from fdistill.training.parallel.compression import EF21, BFloat16, Compression, PowerSGD, TopK

DRAWS, SIGMA_DATA = 2, 0.75
COMPRESSIONS: dict[str, Compression | None] = {
    "dense": None,
    "bf16": BFloat16(),
    "PowerSGD, rank 4": PowerSGD(4),
    "PowerSGD, rank 1": PowerSGD(1),
    "top-k, 10%": TopK(0.1),
    "top-k, 1%": TopK(0.01),
    "EF21, 10%, momentum 0": EF21(0.1, 0.0),
    "EF21, 10%, momentum .9": EF21(0.1, 0.9),
    "EF21, 1%, momentum .9": EF21(0.01, 0.9),
}
COLUMNS = ("loss", "frechet_distance", "bytes", "state_mib")


def adamw(parameters: Any, lr: float, beta: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta, 0.99), weight_decay=0.0)


def teacher(seed: int) -> TeacherModule:
    torch.manual_seed(seed)
    network = SmallUNet(resolution=8, widths=(16, 32), num_classes=10)
    optimizer, levels = functools.partial(adamw, lr=2e-3, beta=0.9), LogNormal(-0.8, 1.2)
    return TeacherModule(network, EDM(SIGMA_DATA), levels, optimizer, SIGMA_DATA, ema_decay=0.99, seed=seed)


def student(source: str, seed: int) -> DistillationModule:
    return DistillationModule(
        source,
        FDistill(JensenShannon(), 0.3),
        LogNormal(-0.5, 1.2),
        functools.partial(adamw, lr=3e-4, beta=0.5),
        functools.partial(adamw, lr=1e-3, beta=0.5),
        sigma_init=5.0,
        turn="fused",
        ema_decay=0.98,
        seed=seed,
    )


def train(module: GenerativeModule, compression: Compression | None, turns: int, batch_size: int, seed: int) -> None:
    quiet_trainer(
        accelerator="cpu",
        devices=world_size(),
        strategy=ReplicatedStrategy(compression),
        max_steps=turns,
    ).fit(module, datamodule=Digits(batch_size, seed=seed))


def held_out_loss(denoiser: nn.Module, data: Digits) -> float:
    """Of the held-out digits, the same noise for every row."""
    x_0, labels, _ = data.held_out_samples.copied()
    losses = []
    for draw in range(8):
        generator = generator_for(7, draw)
        sigma = LogNormal(-0.8, 1.2).sample(len(x_0), generator)
        x = x_0 + sigma.reshape(-1, 1, 1, 1) * torch.randn(x_0.shape, generator=generator)
        with torch.no_grad():
            losses.append(float(denoising_loss(denoiser(x, sigma, labels), x_0, sigma, SIGMA_DATA)))
    return statistics.fmean(losses)


def distance(model: GenerativeModel, data: Digits, extractor: FeatureExtractor) -> float:
    x, labels, _ = data.held_out_samples.copied()
    reference = extractor.extract(x)
    draws = [extractor.extract(model.sample(model.noise(len(x), 1000 + i), labels)) for i in range(DRAWS)]
    return statistics.fmean(float(frechet_distance(draw, reference)) for draw in draws)


def row(name: str, options: argparse.Namespace, data: Digits, extractor: FeatureExtractor) -> dict[str, Any]:
    """One row; both ranks train, and both know the numbers."""
    compression, found = COMPRESSIONS[name], {"turns": options.turns, "seed": options.seed}
    learning = teacher(options.seed)
    train(learning, compression, options.turns, options.batch_size, options.seed)
    found["loss"] = held_out_loss(learning.ema.average, data)
    distilled = student(options.teacher, options.seed)
    fresh = None if compression is None else type(compression).from_spec(compression.spec())
    train(distilled, fresh, options.turns, options.batch_size, options.seed)
    found["frechet_distance"] = distance(distilled.generative_model(), data, extractor)
    moving = (distilled.student, distilled.fake_score, distilled.ratio.discriminator)
    dense = 4.0 * sum(parameter.numel() for network in moving for parameter in network.parameters())
    log = {"compression/bytes": dense, "compression/state_mib": 0.0} if fresh is None else fresh.log()
    return found | {name.removeprefix("compression/"): value for name, value in log.items()}


def write_table(rows: dict[str, dict[str, Any]], path: Path) -> None:
    dense = rows["dense"]["bytes"]
    lines = ["| | loss of the teacher | Fréchet distance of the student | KiB a turn | of dense | memory, MiB |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for name, found in rows.items():
        loss, reached, sent, held = (found[column] for column in COLUMNS)
        lines.append(f"| {name} | {loss:.4f} | {reached:.3f} | {sent / 1024:.1f} | {sent / dense:.1%} | {held:.2f} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="checkpoints/digits-teacher")
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=64, help="of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(COMPRESSIONS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    options.out.mkdir(parents=True, exist_ok=True)
    data = Digits()
    extractor = default_extractor(data.sample_shape, data.num_classes)
    extractor.prepare(data.train_samples.copied().x, data.train_samples.labels, data.num_classes, 0)
    rows = {}
    for name in options.only or COMPRESSIONS:
        path = options.out / f"{name.replace(' ', '-')}-{options.turns}-{options.seed}.json"
        if path.exists():
            rows[name] = json.loads(path.read_text(encoding="utf-8"))
            continue
        rows[name] = row(name, options, data, extractor)
        assert all(math.isfinite(rows[name][column]) for column in COLUMNS)
        dist.barrier()  # both have looked for the file
        if rank() == 0:
            write_json(path, rows[name])
            print(name, rows[name], flush=True)
        dist.barrier()
    if rank() == 0 and "dense" in rows:
        write_table(rows, options.out / "table.md")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
