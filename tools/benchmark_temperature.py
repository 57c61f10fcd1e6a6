"""Distance, precision and recall of students at several temperatures of their noise, beside their teacher.

    python tools/benchmark_temperature.py RUN/checkpoints/last.ckpt ... --seeds 10 --teacher TEACHER --out FILE.json

Every student is judged as `fdistill evaluate` judges it (--repeats draws of --n samples against held-out data, the
features of the default classifier), by the same latents at every temperature; the evaluation's seed is its own of
--seeds. Prints a row a student and temperature, with the ratios to the teacher measured beside it, and medians over
students; writes all to --out as JSON.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path

from fdistill.core.atomic_files import write_json
from fdistill.data import GenerativeDataModule
from fdistill.data.base import remembered_data
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.held_out import HeldOutComparison
from fdistill.evaluation.report.rows import average_rows, measure
from fdistill.evaluation.sources import ModelSource
from fdistill.io.load import load_model
from fdistill.sampling.generator import GenerativeModel

COLUMNS = ("frechet_distance", "precision", "recall", "accuracy", "vendi")
Row = dict[str, float]


def rows(
    models: Mapping[str, GenerativeModel], data: GenerativeDataModule, n: int, repeats: int, seed: int
) -> dict[str, Row]:
    """Mean numbers of each model over draws."""
    comparison = HeldOutComparison(data, default_extractor(data.sample_shape, data.num_classes), n, seed)
    sources = {name: ModelSource(model) for name, model in models.items()}
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in models}
    for repeat in range(repeats):
        for name, _, samples in comparison.draws(sources, repeat):
            if name in found:
                found[name].append(measure(samples, comparison.reference, data.num_modes))
    means = {name: average_rows(draws) for name, draws in found.items()}
    return {name: {key: float(mean[key] or 0.0) for key in COLUMNS} for name, mean in means.items()}


def ratios(row: Row, teacher: Row) -> tuple[float, float]:
    """Distance and recall to the teacher's."""
    return row["frechet_distance"] / teacher["frechet_distance"], row["recall"] / teacher["recall"]


def line(student: str, name: str, row: Row, teacher: Row) -> str:
    cells = [f"{row[key]:.3f}" for key in COLUMNS] + [f"{ratio:.3f}" for ratio in ratios(row, teacher)]
    return f"| {student} | {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True, help="of the evaluations, one a student")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 1.04, 1.08, 1.12])
    parser.add_argument("--n", type=int)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    teacher, results = load_model(given.teacher), []
    heads = ("student", "temperature", "distance", *COLUMNS[1:], "distance / teacher", "recall / teacher")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for path, seed in zip(given.students, given.seeds, strict=True):
        model = load_model(path)
        data = remembered_data(model.facts)
        warm = {f"{t:g}": dataclasses.replace(model, temperature=t) for t in given.temperatures}
        found = rows({"teacher": teacher, **warm}, data, given.n or len(data.held_out_samples), given.repeats, seed)
        results.append({"student": path, "seed": seed, "rows": found})
        for name, row in found.items():
            print(line(f"{path}, {seed}", name, row, found["teacher"]), flush=True)
    for name in results[0]["rows"]:
        every = [ratios(result["rows"][name], result["rows"]["teacher"]) for result in results]
        told = [
            f"{key} {statistics.median(column):.3f} ({min(column):.3f} to {max(column):.3f})"
            for key, column in zip(("distance", "recall"), zip(*every, strict=True), strict=True)
        ]
        print(f"{name}: medians of the ratios to the teacher, {len(every)} students: {', '.join(told)}")
    write_json(given.out, {"results": results})


if __name__ == "__main__":
    main()
