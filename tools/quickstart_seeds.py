"""Run the whole quick start for several seeds and data splits; report median and range, not the best.

    python tools/quickstart_seeds.py --out runs/quickstart_seeds

Runs every seed of --seeds on the first split and every further split of --splits with the first seed. Finished runs
found in --out are not repeated. Writes results.json and prints a Markdown table.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import Digits
from fdistill.evaluation.evaluate import evaluate_models
from fdistill.evaluation.sources import open_source

COLUMNS = {
    "student": ("frechet_distance", "precision", "recall", "accuracy", "vendi"),
    "teacher": ("frechet_distance", "recall"),
    "floor": ("frechet_distance",),
    "class_gaussian": ("frechet_distance",),
}


def run_once(seed: int, split: int, out: Path) -> dict[str, Any]:
    folder = out / f"seed{seed}-split{split}"
    report_file = folder / "report.json"
    if report_file.is_file():
        return json.loads(report_file.read_text())
    common = ["fit", "--config", "configs/trainer.yaml"]
    teacher = folder / "train-teacher" / "checkpoints" / "last.ckpt"
    for name in ("teacher", "student"):
        extra = [] if name == "teacher" else ["--model.teacher", str(teacher)]
        run_trainer(
            [
                *common,
                "--config",
                f"configs/quickstart/{name}.yaml",
                "--seed_everything",
                str(seed),
                "--data.split_seed",
                str(split),
                "--trainer.default_root_dir",
                str(folder / f"train-{name}"),
                "--ckpt_path",
                "last",
                *extra,
            ]
        )
    student = open_source(folder / "train-student" / "checkpoints" / "best.ckpt")
    data = Digits(split_seed=split)
    evaluation = evaluate_models(student, open_source(teacher), data, len(data.held_out_samples), seed, 4)
    write_json(report_file, evaluation.report)
    return evaluation.report


def verdicts(report: dict[str, Any]) -> dict[str, float]:
    """The quantities that the quick start is judged by."""
    student, teacher, floor = report["student"], report["teacher"], report["floor"]
    return {
        "student / teacher distance": student["frechet_distance"] / teacher["frechet_distance"],
        "student - floor distance": student["frechet_distance"] - floor["frechet_distance"],
        "student / Gaussian distance": student["frechet_distance"] / report["class_gaussian"]["frechet_distance"],
        "student / teacher recall": student["recall"] / teacher["recall"],
        "student / held-out Vendi": student["vendi"] / report["held_out"]["vendi"],
        "student accuracy": student["accuracy"],
        "speed-up": report["speedup"],
    }


def line(title: str, values: list[float]) -> str:
    return f"| {title} | {statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pairs = [(seed, options.splits[0]) for seed in options.seeds]
    pairs += [(options.seeds[0], split) for split in options.splits[1:]]
    reports = {f"seed {seed}, split {split}": run_once(seed, split, options.out) for seed, split in pairs}
    judged = {name: verdicts(report) for name, report in reports.items()}
    write_json(options.out / "results.json", {"verdicts": judged, "reports": reports})
    print(f"| {len(reports)} runs | median | range |\n|---|---|---|")
    for row, columns in COLUMNS.items():
        for column in columns:
            print(line(f"{row} {column}", [report[row][column] for report in reports.values()]))
    for name in next(iter(judged.values())):
        print(line(name, [found[name] for found in judged.values()]))
    print(line("seconds", [sum(report["seconds"].values()) for report in reports.values()]))


if __name__ == "__main__":
    main()
