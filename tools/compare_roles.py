"""Full copies beside adapters on one base: quality, diversity, time and memory of one-step students, over seeds.

    make text-quickstart && python tools/compare_roles.py --problem text --out runs/compare-roles/text
    python tools/compare_roles.py --problem digits --out runs/compare-roles/digits

The students of one teacher differ in what of student and fake score learns, and in the seed of noise and batches. A
seed is finished for all variants before the next begins; finished runs found in --out are not repeated. Each run is a
process of its own; `peak` is its largest resident set in training above what it held before it built anything, in
bytes, `planned` what `fdistill plan` counts, `ms` the processor's time of a turn. Writes results.json and prints
medians, lowest to highest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import UNet2DConditionModel  # noqa: F401  # its import would count as the memory of a run
from roles_memory import resident

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.evaluation.caption_evaluation import evaluate_captions
from fdistill.evaluation.evaluate import evaluate_models
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.sources import ModelSource
from fdistill.io.load import load_model
from fdistill.models.adapters import own_parameters
from fdistill.training.planning import GPUS, plan_run

UNCOUNTED = 5  # turns, which allocate
SETTINGS = {
    "text": ["--config", "configs/text_quickstart/student.yaml"],
    "digits": [
        *("--config", "configs/quickstart/student.yaml", "--model.teacher=digits-teacher"),
        *("--trainer.max_steps=300", "--data.batch_size=64"),  # an eighth of the quick start's samples
    ],
}
RANKS = {"text": (64, 16, 4), "digits": (16, 4)}  # no layer of the digits' has 64 dimensions but one


def variants(problem: str) -> dict[str, list[str]]:
    """Options of fdistill fit by what learns of student and fake score."""

    def adapters(rank: int, fake_score: str) -> list[str]:
        roles = {"rank": rank, "targets": "all", "fake_score": fake_score}
        return ["--model.roles=SharedBase", *(f"--model.roles.{name}={value}" for name, value in roles.items())]

    both = {f"rank {rank}, rank {rank}": adapters(rank, "adapter") for rank in RANKS[problem]}
    return {"full, full": [], **both, "rank 16, full": adapters(16, "full")}


class Meter(L.Callback):
    """Processor time of the turns after the first few, and the largest resident set at the end of training."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step <= UNCOUNTED:
            self.began, self.first = time.process_time(), trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.seconds = (time.process_time() - self.began) / (trainer.global_step - self.first)
        self.peak = resident("VmHWM")


def run_here(problem: str, variant: str, seed: int, folder: Path, options: list[str]) -> None:
    """One run with its evaluation, in this process; writes report.json."""
    trainer = {"default_root_dir": folder / "run", "enable_progress_bar": "false", "logger": "false", "callbacks": "[]"}
    if problem == "text":  # its schedule of the learning rate is a part of the recipe
        del trainer["callbacks"]
    settings = ["--config", "configs/trainer.yaml", *SETTINGS[problem], *variants(problem)[variant]]
    settings += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    before, started = resident("VmRSS"), time.process_time()
    cli = run_trainer([*settings, f"--seed_everything={seed}", *options], run=False)
    module, data, meter = cli.model, cli.datamodule, Meter()
    cli.trainer.callbacks.append(meter)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    cli.trainer.fit(module, datamodule=data)
    memory = plan_run(module, data.batch_size, cli.trainer.max_steps, GPUS["H100"]).memory
    learning = sum(value.numel() for value in own_parameters(module.student).values())
    costs = {"ms": 1e3 * meter.seconds, "peak": meter.peak - before, "planned": sum(memory.values())}
    with torch.no_grad():
        report = evaluated(problem, module, data)
    spent = {"weights": learning, "processor_seconds": time.process_time() - started}
    write_json(folder / "report.json", {**report, **costs, **spent})


def evaluated(problem: str, module: Any, data: Any) -> dict[str, Any]:
    """The numbers of the tables; all students are asked on the same noise."""
    model = module.generative_model()
    if problem == "text":
        report = evaluate_captions(model, load_model(module.teacher_source), data).report
        found = {}
        for key, row in report["captions"].items():
            beside = report["student_beside_teacher"][key]
            found |= {f"{name}, {key}": value for name, value in beside.items()}
            found[f"frechet_distance, {key}"] = row["student"]["frechet_distance"]
        return found
    extractor = default_extractor(data.sample_shape, data.num_classes).keep_learned()
    row = evaluate_models(ModelSource(model), None, data, None, 0, None, 0, extractor).report["student"]
    return {name: row[name] for name in ("frechet_distance", "precision", "recall", "accuracy", "vendi")}


def table(reports: dict[str, list[dict[str, Any]]]) -> list[str]:
    columns = list(next(iter(reports.values()))[0])
    lines = [
        "| student, fake score | seeds | " + " | ".join(columns) + " |",
        "|---" + "|--:" * (len(columns) + 1) + "|",
    ]
    for variant, rows in reports.items():
        cells = [variant, str(len(rows))]
        for column in columns:
            values = [row[column] for row in rows]
            digits = 0 if min(values) > 100 else 3
            low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
            cells.append(f"{statistics.median(values):,.{digits}f} ({low} to {high})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=SETTINGS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="as 'rank 16, full'; all where not given")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="of fdistill fit, after --")
    given = parser.parse_args()
    known = variants(given.problem)
    chosen = given.variants or list(known)
    if not set(chosen) <= set(known):
        parser.error(f"--variants are some of {'; '.join(known)}: got {'; '.join(chosen)}")
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in given.seeds:
        for name in chosen:
            folder = given.out / f"seed{seed}" / name.replace(", ", "-").replace(" ", "")
            if given.here:
                run_here(given.problem, name, seed, folder, given.options)
                continue
            if not (folder / "report.json").is_file():
                how = ["--out", str(given.out), "--seeds", str(seed), "--variants", name, "--here"]
                command = [sys.executable, __file__, "--problem", given.problem, *how, "--", *given.options]
                subprocess.run(command, check=True)
            reports[name].append(json.loads((folder / "report.json").read_text()))
            print(f"{name}, seed {seed}: {reports[name][-1]}", flush=True)
    if not given.here:
        write_json(given.out / "results.json", {"seeds": given.seeds, "reports": reports})
        print("\n".join(table(reports)))


if __name__ == "__main__":
    main()
