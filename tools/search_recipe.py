"""A search for a student no worse than its teacher, in distance and recall: trials on some seeds, the report on others.

    python tools/search_recipe.py digits --out runs/search_recipe \\
        --teacher runs/quickstart/train-teacher/checkpoints/last.ckpt --seeds 10 11
    python tools/search_recipe.py digits --out runs/search_recipe --teacher ... --only present winner --seeds 0 1 2 3 4

A trial is what it changes of configs/quickstart/student.yaml, configs/benchmarks/stacked.yaml or fashion.yaml; all
students of a task have one teacher. Digits are judged as by the quick start's report (four draws of 500 against the
held-out images, the evaluation's seed that of the run), stacked digits as by tools/benchmark_objectives.py (4,000
samples), the teacher beside the student, from the same latents; Fashion-MNIST by 5,000 samples against as many held-out
images, the same ones for all, beside 5,000 of the teacher. The last student of a run is judged, also with warmer noise
(its `temperature`), and, but for Fashion-MNIST, the one "chosen" by the least pixel distance to the training images, as
the quick start chooses; trials look at neither when they train. Seconds are processor time of training on one thread
without what judging takes.

Writes one JSON a run into --out/TASK, and does not repeat those that are there. `--seeds` with nothing behind it only
prints the table: medians over the seeds of --table (all, where not given), and their range, which for five values
holds the true median with probability .94.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from benchmark_objectives import SPARE, ImageJudge, drawn
from quiet_trainer import quiet_trainer

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.core.random import fold_seed
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.held_out import HeldOutComparison
from fdistill.evaluation.report.rows import average_rows, measure
from fdistill.evaluation.sources import ModelSource
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.schedules import Linear
from fdistill.training.callbacks import FastNetworks, LearningRate, StudentDistance
from fdistill.training.callbacks.measured import Monitor

LARGE = 5_000  # samples of a large task

NUMBERS = ("frechet", "recall", "precision")
Numbers = dict[str, float]
Changes = dict[str, Any]


class Task(NamedTuple):
    """Configuration files below `configs`, and how its students are judged."""

    configs: tuple[str, ...]
    temperatures: tuple[float, ...]
    """Of the noise that the last student is judged with beside 1."""
    large: bool = False
    """Judged once by LARGE samples; the teacher is drawn once for all seeds, and no student is chosen on the way."""


class Trial(NamedTuple):
    """What is changed of the task's configuration."""

    turns: int
    changes: Changes = {}
    """By dotted name below `model`, or `data.batch_size`."""
    falls: bool = False
    """Whether both learning rates fall to a twentieth over the run."""


def f_distill(adversarial_weight: float | Changes, divergence: str = "JensenShannon") -> Changes:
    """The objective of the quick start with another adversarial weight, or another divergence."""
    arguments = {"divergence": divergence, "adversarial_weight": adversarial_weight}
    return {"objective": {"class_path": "FDistill", "init_args": arguments}}


def balance(share: float) -> Changes:
    """An adversarial weight by its share of the gradient."""
    return {"class_path": "Balance", "init_args": {"share": share}}


def rates(student: float, fake_score: float) -> Changes:
    """Learning rates."""
    return {"student_optimizer.init_args.lr": student, "fake_score_optimizer.init_args.lr": fake_score}


def alternating(fake_updates: int) -> Changes:
    """Turns of the fake side for each of the student."""
    return {"turn": "alternating", "fake_updates_per_student": fake_updates}


def start(sigma: float) -> Changes:
    """The level that the student starts from."""
    return {"sigma_init": sigma}


FASTER = start(1.0) | rates(8e-4, 2e-3)
EAGER = {"discriminator_lr": 5e-3}
SID = {"objective": {"class_path": "SiD", "init_args": {"alpha": 1.2}}}
UNI_INSTRUCT = {
    "objective": {
        "class_path": "UniInstruct",
        "init_args": {"divergence": "JensenShannon", "coefficient": "clipped", "normaliser": "sample"},
    }
}
LOW = {"noise_levels.init_args.mean": -1.0}

TASKS = {
    "digits": Task(("quickstart/student",), (1.05, 1.1, 1.15)),
    "stacked": Task(("benchmarks/stacked",), (1.05, 1.1, 1.15)),
    "fashion": Task(("data/fashion", "benchmarks/fashion"), (1.05, 1.1, 1.15, 1.2), large=True),
}

TRIALS = {
    "digits": {
        "present": Trial(1200),
        "present, 600": Trial(600),
        "start 1": Trial(600, start(1.0), True),
        "start 1, low": Trial(600, start(1.0) | LOW, True),
        "start 1, low, weight .1": Trial(600, start(1.0) | LOW | f_distill(0.1), True),
        "start 1, SiD 1.2": Trial(600, start(1.0) | SID, True),
        "start 1, SiD 1.2, 400": Trial(400, start(1.0) | SID, True),
        "start 1, Uni-Instruct": Trial(300, start(1.0) | UNI_INSTRUCT, True),
        "4:1": Trial(500, FASTER | alternating(4), True),
        "4:1, weight 1": Trial(500, FASTER | alternating(4) | f_distill(1.0), True),
        "4:1, weight .6": Trial(600, FASTER | alternating(4) | f_distill(0.6), True),
        "4:1, weight 1, 120 updates": Trial(600, FASTER | alternating(4) | f_distill(1.0), True),
        "4:1, weight 1, 200 updates": Trial(1000, FASTER | alternating(4) | f_distill(1.0), True),
    },
    "stacked": {
        "present": Trial(320),
        "4:1, weight 1, 120 updates": Trial(600, FASTER | alternating(4) | f_distill(1.0), True),
        "start 1.3": Trial(320, start(1.3), True),
        "start 1.3, balance 1": Trial(320, start(1.3) | f_distill(balance(1.0)), True),
        "start 1.3, discriminator 5e-3": Trial(320, start(1.3) | EAGER, True),
        "start 1.3, discriminator 5e-3, forward KL": Trial(320, start(1.3) | EAGER | f_distill(0.3, "ForwardKL"), True),
        "2:1, start 1.3": Trial(480, start(1.3) | alternating(2) | rates(6e-4, 1.5e-3), True),
        "start 1.3, batch 32": Trial(640, start(1.3) | {"data.batch_size": 32}, True),
        "start 1.3, SiD 1.2, 200": Trial(200, start(1.3) | SID, True),
        "start 1.3, SiD 1.2, 300": Trial(300, start(1.3) | SID, True),
        "start 1.3, SiD 1.2, 400": Trial(400, start(1.3) | SID, True),
    },
    "fashion": {
        "start 1.5, balance 3, 400": Trial(400, start(1.5) | f_distill(balance(3.0)), True),
        "start 5, 400": Trial(400, start(5.0), True),
        "start 5, SiD 1.2, 240": Trial(240, start(5.0) | SID, True),
        "start 5, 1200": Trial(1200, start(5.0), True),
        "start 5, weight 1, 400": Trial(400, start(5.0) | f_distill(1.0), True),
        "4:1, start 5, 240 updates": Trial(1200, start(5.0) | alternating(4) | rates(6e-4, 1e-3), True),
        "start 5, batch 32, 600": Trial(600, start(5.0) | {"data.batch_size": 32}, True),
        "published": Trial(1920, start(80.0) | alternating(5) | rates(6e-4, 1e-3)),
    },
}
"""Every trial that was run, and the present recipe."""


class Judge:
    """Distance, precision and recall of students and of their teacher, for one seed."""

    def __init__(self, task: str, data: GenerativeDataModule, seed: int) -> None:
        self.data, self.seed = data, seed
        self.images = ImageJudge(data) if task == "stacked" else None
        if self.images is not None:
            self.images.n = SPARE
        else:
            extractor = default_extractor(data.sample_shape, data.num_classes).keep_learned()
            large = TASKS[task].large
            n = min(len(data.held_out_samples), LARGE)
            self.comparison = HeldOutComparison(data, extractor, n, 0 if large else seed)
            self.draws = 1 if large else 4

    def __call__(self, model: GenerativeModel) -> Numbers:
        if self.images is not None:
            found: dict[str, Any] = self.images(drawn(model, self.images, self.data, 1000 + self.seed))
            return {name: found[name] for name in ("frechet", "precision", "recall", "vendi")}
        found = average_rows([self._draw(ModelSource(model), repeat) for repeat in range(self.draws)])
        names = {"frechet_distance": "frechet", "vendi": "vendi", "accuracy": "accuracy"}
        return {names.get(name, name): found[name] for name in (*names, "precision", "recall")}

    def _draw(self, source: ModelSource, repeat: int) -> dict[str, Any]:
        """One draw of the report, from the latents that it has for teacher and student."""
        held_out, seed = self.comparison, fold_seed(self.seed, repeat) % 2**32
        labels = source.labels(held_out.n, seed, held_out.labels)
        samples = held_out.read("samples", source.draw(held_out.n, seed, labels), labels)
        return measure(samples, held_out.reference, self.data.num_modes)


class Chosen(Monitor):
    """Keeps the student with the least pixel distance to the training images."""

    monitor = "metric/pixel_frechet_distance"

    def __init__(self) -> None:
        super().__init__()
        self.least, self.turn = float("inf"), 0
        self.model: Any = None

    def on_value(self, trainer: L.Trainer, value: float) -> None:
        if value < self.least:
            module: Any = trainer.lightning_module
            self.least, self.turn = value, trainer.global_step
            self.model = copy.deepcopy(module.generative_model())


class Observed(L.Callback):
    """Judges the student's average at four times; the time this takes does not count."""

    def __init__(self, judge: Judge, turns: int) -> None:
        self.judge, self.turns = judge, turns
        self.curve: list[Numbers] = []
        self.spent = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.resumed = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module: Any = pl_module
        self.spent += time.process_time() - self.resumed
        if trainer.global_step % max(self.turns // 4, 1) == 0:
            place = {"turn": trainer.global_step, "updates": module.updates, "seconds": self.spent}
            self.curve.append(place | self.judge(module.generative_model()))
        self.resumed = time.process_time()


def built(task: str, trial: Trial, teacher: str, seed: int) -> Any:
    """Module and data of a trial."""
    base = f_distill(0.3) if task == "stacked" else {}  # the quick start's objective, which that file leaves open
    changes: dict[str, Any] = {
        name if name.startswith("data.") else f"model.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in (base | trial.changes).items()
    }
    changes |= {"model.teacher": teacher, "seed_everything": seed, "trainer.callbacks": "[]"}
    arguments = [part for name in ("trainer", *TASKS[task].configs) for part in ("--config", f"configs/{name}.yaml")]
    return run_trainer(arguments + [f"--{name}={value}" for name, value in changes.items()], run=False)


def run(options: argparse.Namespace, name: str, seed: int, judges: dict[int, Judge]) -> None:
    """Train and judge one student, unless that is done."""
    folder, task, trial = options.out / options.task, TASKS[options.task], TRIALS[options.task][name]
    path = folder / f"{name}-{seed}.json"
    if path.is_file():
        return
    cli = built(options.task, trial, options.teacher, seed)
    judge = judges.setdefault(seed, Judge(options.task, cli.datamodule, seed))
    known = teacher_file(folder, options.task, seed)
    if not known.is_file():
        write_json(known, judge(cli.model.teacher_model()))
    observed, chosen = Observed(judge, trial.turns), Chosen()
    falling = [LearningRate(Linear(1.0, 0.05, cli.model.updates_after(trial.turns)))] if trial.falls else []
    others: list[L.Callback] = [FastNetworks("none")] if task.large else [StudentDistance(every_n_turns=50), chosen]
    trainer = quiet_trainer(accelerator="cpu", max_steps=trial.turns, callbacks=[*falling, observed, *others])
    trainer.fit(cli.model, datamodule=cli.datamodule)
    found = {"seconds": observed.spent, "updates": cli.model.updates, "last": observed.curve[-1]}
    student = cli.model.generative_model()
    found["warm"] = {f"{t:g}": judge(dataclasses.replace(student, temperature=t)) for t in task.temperatures}
    if not task.large:
        found["chosen"] = {"turn": chosen.turn, **judge(chosen.model)}
    write_json(path, found | {"curve": observed.curve, "trial": trial._asdict()})
    print(table(folder, options.task, [seed]), flush=True)


def teacher_file(folder: Path, task: str, seed: int) -> Path:
    """Where the teacher's numbers for a seed are kept."""
    return folder / ("teacher.json" if TASKS[task].large else f"teacher-{seed}.json")


def table(folder: Path, task: str, seeds: list[int]) -> str:
    """Every trial with a run of these seeds (of all, where there are none): ratios to the teacher."""
    titles = ("trial", "turns", "seeds", "distance", "recall", "precision", "chosen: distance", "recall", "seconds")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, trial in TRIALS[task].items():
        paths = {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{name}-[0-9]*.json")}
        found = {seed: json.loads(paths[seed].read_text()) for seed in sorted(paths) if not seeds or seed in seeds}
        if not found:
            continue
        seconds = f"{statistics.median(row['seconds'] for row in found.values()):.0f}"
        students: dict[str, list[tuple[Numbers, ...]]] = {
            name: [(row["last"], *([row["chosen"]] if "chosen" in row else [])) for row in found.values()]
        }
        for t in [
            f"{t:g}" for t in TASKS[task].temperatures if all(f"{t:g}" in row.get("warm", {}) for row in found.values())
        ]:
            students[f"{name}, temperature {t}"] = [(row["warm"][t],) for row in found.values()]
        teachers = [json.loads(teacher_file(folder, task, seed).read_text()) for seed in found]
        for title, judged in students.items():
            cells = [title, str(trial.turns), ", ".join(map(str, found))]
            for rows, numbers in zip(zip(*judged, strict=True), (NUMBERS, NUMBERS[:2]), strict=False):
                cells += [
                    spread([row[name] / teacher[name] for row, teacher in zip(rows, teachers, strict=True)])
                    for name in numbers
                ]
            cells += [""] * (len(titles) - 1 - len(cells))
            lines.append("| " + " | ".join([*cells, seconds]) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Median, and the range: of five values it holds the true median with probability 1 - 2 / 2^5 = .94."""
    return f"{statistics.median(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if values[1:] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--teacher", required=True, help="a checkpoint")
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="names of trials; all, where not given")
    parser.add_argument("--seeds", nargs="*", type=int, default=[10], help="none only prints the table")
    parser.add_argument("--table", nargs="*", type=int, default=[], help="seeds of the table; all, where not given")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judges: dict[int, Judge] = {}
    for seed in options.seeds:
        for name in options.only or TRIALS[options.task]:
            run(options, name, seed, judges)
    print(table(options.out / options.task, options.task, options.table))


if __name__ == "__main__":
    main()
