"""Steps a second and peak memory of a text-to-image distillation at its real size, with random weights.

    python tools/benchmark_text_step.py --teacher sd15 --batch 4 --device cuda --precision bf16-mixed
    python tools/benchmark_text_step.py --teacher sd15 --small      # a tiny network, to try the command

Diff-Instruct in alternating turns, one of the fake score for each of the student, on random conditions; the teacher's
size is that of configs/teachers. Beside what was measured stands what `fdistill plan` counts. A CPU has no peak.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import atomic_write, write_json
from fdistill.data import Batch
from fdistill.models.condition import Condition
from fdistill.training import DistillationModule
from fdistill.training.planning import GPUS, plan_run
from fdistill.training.run_parts import set_callbacks

CONFIGS = Path(__file__).parents[1] / "configs"
UNCOUNTED = 4  # turns, which allocate
SMALL = {"block_out_channels": [32, 32, 32, 32], "cross_attention_dim": 16}


class Stopwatch(L.Callback):
    """Seconds of every turn, the device's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: DistillationModule, *_: Any) -> None:
        self._started = self._now(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: DistillationModule, *_: Any) -> None:
        self.seconds.append(self._now(module) - self._started)

    def _now(self, module: DistillationModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()


def settings_of(options: argparse.Namespace) -> list[str]:
    """Arguments of fit; a small teacher is written to a file of its own."""
    teacher = yaml.safe_load((CONFIGS / "teachers" / f"{options.teacher}.yaml").read_text())
    network = teacher["model"]["init_args"]["teacher"]["init_args"]["network"]["init_args"]
    if options.small:
        network |= {"config": SMALL, "sample_shape": [4, 16, 16], "null": {"encoder_hidden_states": [7, 16]}}
        teacher["data"]["init_args"]["sample_shape"] = network["sample_shape"]
    file = options.out / "teacher.yaml"
    atomic_write(file, yaml.safe_dump(teacher).encode())
    trainer = {"accelerator": torch.device(options.device).type, "devices": "1", "precision": options.precision}
    trainer |= {"max_steps": str(options.turns + UNCOUNTED), "logger": "false", "callbacks": "[]"}
    trainer |= {"enable_progress_bar": "false", "enable_checkpointing": "false", "default_root_dir": str(options.out)}
    configs = [CONFIGS / "trainer.yaml", CONFIGS / "imported.yaml", file]
    arguments = [part for path in configs for part in ("--config", str(path))]
    arguments += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    arguments += [f"--data.batch_size={options.batch}", f"--model.teacher_dtype={options.teacher_dtype}"]
    return [*arguments, f"--model.gradient_checkpointing={str(options.gradient_checkpointing).lower()}"]


def batch_of(module: DistillationModule, n: int, device: str) -> Batch:
    """Random conditions of n samples, of CLIP's length."""
    sizes = {name: [size or 77 for size in entry.shape] for name, entry in module.student.takes.items()}
    condition = Condition({name: torch.randn(n, *size, device=device) for name, size in sizes.items()})
    x = torch.zeros(n, *module.student.sample_shape, device=device)
    return Batch(x, torch.zeros(n, dtype=torch.int64, device=device), condition)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cli, watch = run_trainer(settings_of(options), run=False), Stopwatch()
    module, turns = cli.model, options.turns + UNCOUNTED
    mixed = options.precision == "bf16-mixed"
    planned = plan_run(module, options.batch, turns, GPUS["H100"], mixed=mixed).memory
    set_callbacks(cli.trainer, [watch])
    cli.trainer.fit(module, train_dataloaders=[batch_of(module, options.batch, options.device)] * turns)
    counted = watch.seconds[UNCOUNTED:]
    cuda = module.device.type == "cuda" or options.device.startswith("cuda")
    facts = {name: str(value) for name, value in vars(options).items()} | {"torch": torch.__version__}
    return {
        "options": facts,
        "parameters": sum(p.numel() for p in module.student.parameters()),
        "steps_per_second": 1 / statistics.fmean(counted),
        "student_ms": 1000 * statistics.median(counted[1::2]),
        "fake_ms": 1000 * statistics.median(counted[::2]),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "planned_bytes": sum(planned.values()),
    }


def table(found: dict[str, Any]) -> str:
    peak = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e9:.2f}"
    return "\n".join(
        [
            "| weights of one network | steps/s | student turn, ms | fake turn, ms | peak, GB | plan, GB |",
            "|---" * 6 + "|",
            f"| {found['parameters']:,} | {found['steps_per_second']:.2f} | {found['student_ms']:.1f} | "
            f"{found['fake_ms']:.1f} | {peak} | {found['planned_bytes'] / 1e9:.2f} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", default="sd15", help="a file of configs/teachers; --small has a network of SD1.5's"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=16, help="measured ones; four more allocate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--teacher-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the command itself")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_text_step"))
    options = parser.parse_args()
    found = measure(options)
    print(table(found))
    write_json(options.out / f"{options.teacher}.json", found)


if __name__ == "__main__":
    main()
