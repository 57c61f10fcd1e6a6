"""Memory of a text-to-image distillation: three full copies, or adapters of rank 64 on one base, by plan and measured.

    python tools/roles_memory.py                        # the table of four teachers, on the meta device
    python tools/roles_memory.py --measure              # a network of 77 million weights in turns, on the CPU
    python tools/roles_memory.py --measure --device cuda --teacher sdxl    # a teacher's real size, random weights

Diff-Instruct in alternating turns with AdamW, batch 1, as configs/imported.yaml; the teachers are those of
configs/teachers. Each measured run is a process of its own, with the most memory that it held above what it held before
it built anything: of the CPU the resident set, of a GPU torch's allocator.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch.utils.data import DataLoader

from fdistill.cli.commands.plan import plan
from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import Batch
from fdistill.models.condition import Condition
from fdistill.training.argument_checks import Stored
from fdistill.training.planning import GPUS, plan_run

CONFIGS = Path(__file__).parents[1] / "configs"
TEACHERS = ("sd15", "sdxl", "sd35_medium", "flux1_dev")
SHARED = ["--model.roles=SharedBase", "--model.roles.rank=64"]
CHECKPOINTING = ["--model.gradient_checkpointing=true"]
WAYS = {
    "three copies": [],
    "three copies, checkpointing": CHECKPOINTING,
    "LoRA on attention": SHARED,
    "LoRA on attention, checkpointing": [*SHARED, *CHECKPOINTING],
    "LoRA on all layers, checkpointing": [*SHARED, "--model.roles.targets=all", *CHECKPOINTING],
}
MEDIUM = {"block_out_channels": [96, 192, 384, 384], "cross_attention_dim": 256}  # of SD1.5's structure
OPTIMISERS = [f"--model.{name}_optimizer=torch.optim.AdamW" for name in ("student", "fake_score")]


def settings_of(teacher: Path, way: str, dtype: str) -> list[str]:
    configs = [CONFIGS / "trainer.yaml", CONFIGS / "imported.yaml", teacher]
    arguments = [part for path in configs for part in ("--config", str(path))]
    return [*arguments, "--data.batch_size=1", f"--model.teacher_dtype={dtype}", *OPTIMISERS, *WAYS[way]]


def planned(teacher: str, way: str, dtype: str) -> dict[str, int]:
    """Bytes by what they hold, in bf16-mixed."""
    settings = [
        *settings_of(CONFIGS / "teachers" / f"{teacher}.yaml", way, dtype),
        "--trainer.precision=bf16-mixed",
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder) / "plan.json"
        plan(settings, out=str(out))
        return json.loads(out.read_text())["memory"]


def plan_table(teachers: list[str], ways: list[str], dtype: str) -> None:
    roles = ("teacher", "student", "fake_score", "ema")
    print("| teacher | roles | base | student | fake score | EMA | optimisers | turn | sum, GB |")
    print("|---|---" + "|--:" * 7 + "|")
    for teacher in teachers:
        for way in ways:
            memory = planned(teacher, way, dtype)
            values = [memory.pop(f"weights of {role}", 0) for role in roles]
            values += [memory.pop("optimiser states"), memory.pop("turn (activations, gradients)")]
            if memory:
                raise ValueError(f"the table has no column for {sorted(memory)}")
            cells = " | ".join(f"{value / 1e9:.2f}" for value in [*values, sum(values)])
            print(f"| {teacher} | {way} | {cells} |", flush=True)


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (at the most) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak and plan of a run of a few turns in this process."""
    teacher = yaml.safe_load((CONFIGS / "teachers" / f"{options.teacher or 'sd15'}.yaml").read_text())
    if options.teacher is None:
        network = teacher["model"]["init_args"]["teacher"]["init_args"]["network"]["init_args"]
        network |= {"config": MEDIUM, "sample_shape": [4, 32, 32], "null": {"encoder_hidden_states": [77, 256]}}
        teacher["data"]["init_args"]["sample_shape"] = network["sample_shape"]
    (folder / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    cuda = options.device == "cuda"
    trainer = {"accelerator": "gpu" if cuda else "cpu", "devices": 1, "max_steps": options.turns, "callbacks": "[]"}
    trainer |= {"logger": "false", "enable_progress_bar": "false", "enable_checkpointing": "false"}
    trainer |= {"default_root_dir": folder, "precision": "bf16-mixed" if cuda else "32-true"}
    settings = settings_of(folder / "teacher.yaml", options.way, options.dtype)
    before = resident("VmRSS")
    cli = run_trainer([*settings, *(f"--trainer.{name}={value}" for name, value in trainer.items())], run=False)
    module = cli.model
    memory = plan_run(module, 1, options.turns, GPUS["H100"], mixed=cuda).memory
    sizes = {name: [size or 77 for size in entry.shape] for name, entry in module.student.takes.items()}
    condition = Condition({name: torch.randn(1, *size) for name, size in sizes.items()})
    batch = Batch(torch.zeros(1, *module.student.sample_shape), torch.zeros(1, dtype=torch.int64), condition)
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    turns = DataLoader([batch] * options.turns, batch_size=None, collate_fn=lambda batch: batch)
    cli.trainer.fit(module, train_dataloaders=turns)
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before
    weights = sum(parameter.numel() for parameter in module.student.parameters())
    return {"peak": peak, "planned": sum(memory.values()), "weights": weights}


def measured_table(options: argparse.Namespace) -> None:
    print("| roles | base | weights of the student | peak, MB | plan, MB |")
    print("|---|---" + "|--:" * 3 + "|")
    made = {}
    for way in options.ways:
        command = [sys.executable, __file__, "--way", way, "--dtype", options.dtype, "--device", options.device]
        command += ["--turns", str(options.turns), *(["--teacher", options.teacher] if options.teacher else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = made[way] = json.loads(done.stdout.splitlines()[-1])
        sizes = " | ".join(f"{found[name] / 1e6:,.0f}" for name in ("peak", "planned"))
        print(f"| {way} | {options.dtype} | {found['weights']:,} | {sizes} |", flush=True)
    if options.out is not None:
        write_json(options.out / "memory.json", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS), help="of the table by plan")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", action="store_true", help="run turns in place of the table by plan")
    parser.add_argument("--teacher", choices=TEACHERS, help="measured in its real size; else a network of 77 million")
    parser.add_argument("--dtype", choices=get_args(Stored), help="of the base; float32 where measured, else bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--out", type=Path, help="folder for memory.json, what was measured in bytes")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.measure else "bfloat16")
    if options.way:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(options, Path(folder))))
    elif options.measure:
        measured_table(options)
    else:
        plan_table(options.teachers, options.ways, options.dtype)


if __name__ == "__main__":
    main()
