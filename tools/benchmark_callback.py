"""What watching a run costs: every part of DiversityCallback and CollapseCallback, beside the quick start's training.

    python tools/benchmark_callback.py --n 2000
    python tools/benchmark_callback.py --n 2000 --only_features --threads 1

One run measures both: milliseconds a turn of the quick start's teacher and student (with the shipped teacher), and the
seconds of each part of the callbacks at n samples. Digits have 1,297 training images, of which n = 648 is the most; for
a larger n each image is moved by a pixel to all sides as well, which changes times by nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fdistill.cli.fit import run_trainer
from fdistill.data import Digits, InMemorySplit
from fdistill.evaluation.collapse_alarm import WATCHED
from fdistill.evaluation.comparison import TrainingComparison
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.evaluation.metrics import standard_metrics
from fdistill.io.load import load_model

TEACHER_TURNS, STUDENT_UPDATES, EVERY = 3600, 1200, 200  # of the quick start
TURNS = 120  # measured of each, the first 40 left out


class MovedDigits(Digits):
    """Digits, and each moved by one pixel to the four sides."""

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        train, held_out = super().load_splits()
        whole = train.copied()
        moves = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
        x = torch.cat([whole.x.roll(move, (2, 3)) for move in moves])
        return InMemorySplit(x, whole.labels.repeat(len(moves))), held_out


def seconds_of(part: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        part()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def step_ms(config: str, *options: str) -> float:
    """Median milliseconds a turn of a short run of a configuration, without its callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "default_root_dir": folder,
            "max_steps": TURNS,
            "limit_val_batches": 0,
            "val_check_interval": "null",
            "callbacks": "null",
            "enable_progress_bar": "false",
            "enable_checkpointing": "false",
        }
        files = ["--config", "configs/trainer.yaml", "--config", config]
        run_trainer(["fit", *files, *(f"--trainer.{name}={value}" for name, value in settings.items()), *options])
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["perf/step_ms"] for line in lines if line["step"] > 40 and "perf/step_ms" in line)


def probe_of(data: Digits, n: int, kept: str | None = None) -> TrainingComparison:
    """What DiversityCallback prepares at the start of a run."""
    extractor = ClassifierFeatures(epochs=20).keep_in(kept)
    return TrainingComparison(data, extractor, standard_metrics(10), n, seed=0)


def compare_cache(data: Digits, n: int, repeats: int = 3) -> None:
    """Print the seconds of preparing features without a cache, into an empty one and from a full one, interleaved."""
    times: dict[str, list[float]] = {"computed": [], "computed and kept": [], "read again": []}
    values = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, found in times.items():
                began = time.perf_counter()
                probe = probe_of(data, n, None if name == "computed" else folder)
                found.append(time.perf_counter() - began)
                values.append(probe.floor())
    assert all(value == values[0] for value in values)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    for name, found in seconds.items():
        print(f"  features {name:18s} {found:8.3f} s, {found / seconds['computed']:.4f} of computing them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only_features", action="store_true", help="with and without a feature cache, nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = (Digits if arguments.n <= 648 else MovedDigits)(batch_size=128)
    len(data.train_samples)  # loading is not what is measured
    if arguments.only_features:
        compare_cache(data, arguments.n)
        return
    teacher_ms = step_ms("configs/quickstart/teacher.yaml")
    student_ms = step_ms("configs/quickstart/student.yaml", "--model.teacher=checkpoints/digits-teacher")
    training = (teacher_ms * TEACHER_TURNS + student_ms * STUDENT_UPDATES) / 1000
    print(f"a turn: {teacher_ms:.1f} ms of the teacher, {student_ms:.1f} ms of the student; {training:.0f} s in all")

    began = time.perf_counter()
    probe = probe_of(data, arguments.n)
    once = {"features learned": time.perf_counter() - began}
    student, teacher = (load_model(f"checkpoints/digits-{kind}") for kind in ("student", "teacher"))
    once["teacher sampled"] = seconds_of(lambda: probe.draw(teacher), 1)
    rows, teacher_rows = probe.draw(student), probe.draw(teacher)
    once["teacher and floor measured"] = seconds_of(lambda: (probe.measure(teacher_rows), probe.floor()))
    once["bands of the alarm"] = seconds_of(lambda: probe.null(list(WATCHED), 20), 1)
    each = {
        "student sampled, features read": seconds_of(lambda: probe.draw(student), 5),
        "all metrics": seconds_of(lambda: probe.measure(rows, teacher_rows), 5),
    }
    for name, spent in {**once, **each}.items():
        print(f"  {name:32s} {spent:7.3f} s{' each time' if name in each else ''}")
    times = STUDENT_UPDATES // EVERY
    repeated, total = sum(each.values()) * times, sum(each.values()) * times + sum(once.values())
    print(
        f"n={probe.n}: {times} measurements take {repeated:.2f} s, {100 * repeated / training:.2f}% of the training of "
        f"teacher and student; with what is done once {total:.2f} s, {100 * total / training:.2f}%"
    )


if __name__ == "__main__":
    main()
