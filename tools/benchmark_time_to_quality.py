"""Quality against time: the published turn beside ours, from one teacher, seeds interleaved.

    python tools/benchmark_time_to_quality.py digits --out runs/time_to_quality
    python tools/benchmark_time_to_quality.py stacked --out runs/time_to_quality \\
        --teacher runs/benchmark_objectives/stacked-teacher/checkpoints/last.ckpt

f-distill (Jensen-Shannon, adversarial weight .3, discriminator on the teacher's features) by several settings, from
one teacher. "published" takes turns, five of the fake side for each of the student, with fresh samples, the task's
batch and a student that starts from noise of 80. The others start at 1, or where `sigma_init: auto` finds the teacher's
denoising to be diverse, and change the turn.

Seconds are processor time of training on one thread; what measuring takes is not counted. Every `--every` of them the
student's average is judged as by tools/benchmark_objectives.py. Records of the published setting are the times at
which its distance is the lowest so far, in medians over seeds; another setting has got there when its distance is no
higher and its recall no lower. Writes results.json, table.md and picture.png into --out/TASK; runs that are in
results.json already are not repeated, so that settings may get different --seconds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from benchmark_objectives import SPARE, ImageJudge, drawn, kl
from matplotlib.figure import Figure
from quiet_trainer import quiet_trainer

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.evaluation.report.figure_file import save_figure
from fdistill.theory.schedules import Linear
from fdistill.training.callbacks import LearningRate


class Setting(NamedTuple):
    """What is changed of configs/benchmarks/TASK.yaml."""

    colour: str
    fake_updates: int | None
    """Turns of the fake side for each of the student, or None for fused turns."""
    sigma_init: float | str
    batch_size: int | None
    """None for the task's own."""
    student_lr: float
    fake_lr: float
    reuses: bool = False
    """Whether fake turns noise the student's last samples anew."""
    falls_over: int | None = None
    """Updates over which both learning rates fall to a twentieth, or None where they stay."""


SETTINGS = {
    "published": Setting("#8a8a8a", 5, 80.0, None, 6e-4, 1e-3),
    "published, start at 1": Setting("#d1782c", 5, 1.0, None, 6e-4, 1e-3),
    "the same, samples reused": Setting("#7b4fa3", 5, 1.0, None, 6e-4, 1e-3, reuses=True),
    "4:1, start at 1, batch 96": Setting("#6b9a3f", 4, 1.0, 96, 6e-4, 1.5e-3),
    "4:1, falling rates": Setting("#b02a4f", 4, 1.0, 96, 8e-4, 2e-3, falls_over=35),
    "fused, start at 1, batch 32": Setting("#2a66b0", None, 1.0, 32, 1e-4, 1e-3),
    "published, start found": Setting("#c9a227", 5, "auto", None, 6e-4, 1e-3),
}
TEACHERS = {"digits": "checkpoints/digits-teacher", "stacked": None}
Row = dict[str, float]


class Stopwatch(L.Callback):
    """Judges the student after every `every` seconds of training, and ends the run after `seconds`."""

    def __init__(self, judge: ImageJudge, every: float, seconds: float) -> None:
        self.judge, self.every, self.seconds = judge, every, seconds
        self.spent, self.rows = 0.0, []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.resumed = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        spent = self.spent + time.process_time() - self.resumed
        if spent < self.every * (len(self.rows) + 1):
            return
        found = self.judge(drawn(pl_module.generative_model(), self.judge, self.judge.data, 5))
        self.rows.append({"seconds": self.every * (len(self.rows) + 1), "updates": pl_module.updates, **found})
        trainer.should_stop = spent >= self.seconds
        self.spent, self.resumed = spent, time.process_time()


def arguments_of(task: str, setting: Setting, teacher: str, seed: int) -> list[str]:
    """Of `fdistill fit`."""
    changes = {
        "model.teacher": teacher,
        "model.objective": json.dumps(kl("JensenShannon", adversarial_weight=0.3)),
        "model.turn": "alternating" if setting.fake_updates else "fused",
        "model.fake_updates_per_student": setting.fake_updates or 1,
        "model.sigma_init": setting.sigma_init,
        "model.student_optimizer.init_args.lr": setting.student_lr,
        "model.fake_score_optimizer.init_args.lr": setting.fake_lr,
        "model.reuse_generated": str(setting.reuses).lower(),
        "model.student_optimizer.init_args.fused": "true",
        "model.fake_score_optimizer.init_args.fused": "true",
        "seed_everything": seed,
        "trainer.max_steps": 1_000_000,
        "trainer.callbacks": "[]",
    }
    if setting.batch_size is not None:
        changes["data.batch_size"] = setting.batch_size
    configs = ["--config", "configs/trainer.yaml", "--config", f"configs/benchmarks/{task}.yaml"]
    return configs + [f"--{name}={value}" for name, value in changes.items()]


def train(setting: Setting, seed: int, options: argparse.Namespace, judge: ImageJudge) -> list[Row]:
    cli = run_trainer(arguments_of(options.task, setting, options.teacher, seed), run=False)
    watch = Stopwatch(judge, options.every, options.seconds)
    rates = [] if setting.falls_over is None else [LearningRate(Linear(1.0, 0.05, setting.falls_over))]
    trainer = quiet_trainer(
        accelerator="cpu",
        max_steps=-1,
        callbacks=[*rates, watch],
    )
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return watch.rows


def medians(seeds: dict[str, list[Row]]) -> list[Row]:
    """Over seeds, at each time."""
    return [
        {name: statistics.median(r[name] for r in rows) for name in rows[0]}
        for rows in zip(*seeds.values(), strict=True)
    ]


def records(rows: list[Row]) -> list[Row]:
    """The rows whose distance is below that of all before them."""
    return [row for i, row in enumerate(rows) if all(row["frechet"] < before["frechet"] for before in rows[:i])]


def reached(rows: list[Row], goal: Row) -> float | None:
    """Seconds until the distance is no higher and the recall no lower; None where it never is."""
    there = (r["seconds"] for r in rows if r["frechet"] <= goal["frechet"] and r["recall"] >= goal["recall"])
    return next(there, None)


def table(found: dict[str, list[Row]]) -> str:
    """The records of the published setting, and when the others got there."""
    rivals = [name for name in found if name != "published"]
    lines = ["| published: seconds | Fréchet distance | recall | " + " | ".join(f"{r}: seconds" for r in rivals) + " |"]
    lines.append("|---" * (3 + len(rivals)) + "|")
    for goal in records(found["published"]):
        cells = [_cell(reached(found[name], goal), goal["seconds"], found[name][-1]["seconds"]) for name in rivals]
        start = [f"{goal['seconds']:.0f}", f"{goal['frechet']:.3f}", f"{goal['recall']:.3f}"]
        lines.append("| " + " | ".join([*start, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(there: float | None, goal: float, longest: float) -> str:
    return f"not in {longest:.0f}" if there is None else f"{there:.0f} ({goal / there:.1f} x)"


def picture(runs: dict[str, dict[str, list[Row]]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), facecolor="white", layout="constrained")
    for axes, column, title in zip(
        figure.subplots(1, 2), ("frechet", "recall"), ("Fréchet distance", "recall"), strict=True
    ):
        for name, seeds in runs.items():
            colour = SETTINGS[name].colour
            for rows in seeds.values():
                axes.plot([r["seconds"] for r in rows], [r[column] for r in rows], color=colour, alpha=0.3, linewidth=1)
            middle = medians(seeds)
            axes.plot(
                [r["seconds"] for r in middle], [r[column] for r in middle], color=colour, linewidth=2, label=name
            )
        if column == "frechet":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0.6)
        axes.set(xlabel="seconds of training", ylabel=title)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TEACHERS)
    parser.add_argument("--teacher", help="a checkpoint; for digits, the one in checkpoints/ where not given")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="none only writes table and picture anew"
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.teacher = options.teacher or TEACHERS[options.task]
    if options.teacher is None:
        parser.error(f"{options.task} has no teacher of its own: train configs/benchmarks/{options.task}_teacher.yaml")
    torch.set_num_threads(1)
    folder = options.out / options.task
    kept = folder / "results.json"
    runs = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    first = arguments_of(options.task, SETTINGS["published"], options.teacher, 0)
    judge = ImageJudge(run_trainer(first, run=False).datamodule)
    judge.n = min(judge.n, SPARE)
    for seed in options.seeds:
        for name in options.only:
            if str(seed) in runs.setdefault(name, {}):
                continue
            runs[name][str(seed)] = train(SETTINGS[name], seed, options, judge)
            write_json(kept, runs)
            last = runs[name][str(seed)][-1]
            print(f"{name}, seed {seed}: {last['updates']} updates, distance {last['frechet']:.3f}", flush=True)
    runs = {name: runs[name] for name in SETTINGS if name in runs}
    found = {name: medians(seeds) for name, seeds in runs.items()}
    (folder / "table.md").write_text(table(found), encoding="utf-8")
    picture(runs, folder / "picture.png")
    print(table(found))


if __name__ == "__main__":
    main()
