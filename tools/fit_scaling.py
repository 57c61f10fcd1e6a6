"""The scaling law of one-step students of digits: fitted, tried on held-out larger runs, drawn, and packaged.

    python tools/fit_scaling.py --out runs/scaling                      # from the points that are committed
    python tools/fit_scaling.py --runs runs/scaling --out runs/scaling  # from runs of tools/scaling_runs.py
    python tools/fit_scaling.py --check 200 --out runs/scaling          # how often intervals hold a known truth

Distance, missed recall (1 - recall, at least half a sample) and fake-score loss are fitted as L = E + A N^-a + G T^-g
+ B D^-b (fdistill/training/planning/power_law.py): N weights of the student, T of the teacher, D samples generated for
the student's updates. Points before the 40th update, while the student still leaves its start, are left out; two more
fits are listed beside it, one of all points, and one in C FLOPs in place of D. The runs of the largest student are held
out. A quantity is predicted if at least 90% of their points lie in the 95% intervals of single runs, and the mean over
seeds at their end too; then the law is said to hold up to them, else within the fitted runs alone.

With --runs it writes tools/scaling_points.json anew, from which all else follows. Writes table.md and picture.png into
--out, and with --package fdistill/training/planning/digits_law.json, which `fdistill plan` quotes.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fdistill.core.atomic_files import atomic_write, write_json
from fdistill.evaluation.report.figure_file import RED, new_figure, save_figure, styled
from fdistill.training.planning.power_law import CannotSay, Interval, Points, PowerLaw, fit_power_law
from fdistill.training.planning.scaling_law import FILE, ScalingLaw

POINTS = Path(__file__).with_name("scaling_points.json")
COLUMNS = ("updates", "seconds", "distance", "recall", "fake_score_loss")
QUANTITIES = {
    "distance": "Fréchet distance",
    "missed_recall": "1 - recall",
    "fake_score_loss": "loss of the fake score",
}
VARIANTS = {"D": ("samples", 40), "D, all points": ("samples", 0), "C": ("flops", 40)}
"""The axis of compute, and the least number of updates; the first is drawn and packaged."""
FIRST = next(iter(VARIANTS))
LEAST_SHARE = 0.9  # of held-out points inside of their intervals
NOTHING = 2e-3  # a part of the law that is looked for down to a thousandth of the least value
HALF_A_SAMPLE = 0.5 / 500
PROBLEM = {"data": "Digits", "objective": "FDistill", "steps": 1}
MEASURED = {
    "divergence": "JensenShannon",
    "network": "SmallUNet",
    "turn": "fused",
    "sigma_init": 1.0,
    "batch_size": 32,
}
Run = dict[str, Any]
Fits = Mapping[tuple[str, str], PowerLaw | str]
"""By quantity and variant: a law, or why there is none."""


def collected(folder: Path) -> dict[str, Any]:
    """What the runs found, in few words."""
    runs = []
    for path in sorted(folder.glob("student*-teacher*-seed*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        curve = [[float(f"{row[name]:.5g}") for name in COLUMNS] for row in found.pop("rows")]
        runs.append(found | {"curve": curve})
    denoisers = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("denoiser*.json")]
    return {"columns": COLUMNS, "denoisers": sorted(denoisers, key=lambda each: each["weights"]), "runs": runs}


def written(found: dict[str, Any]) -> str:
    """JSON, a line a run."""
    lines = {name: [json.dumps(row) for row in found[name]] for name in ("denoisers", "runs")}
    parts = [f'"{name}": [\n' + ",\n".join(rows) + "\n]" for name, rows in lines.items()]
    return "{\n" + ",\n".join([f'"columns": {json.dumps(found["columns"])}', *parts]) + "\n}\n"


def value(quantity: str, row: list[float]) -> float:
    named = dict(zip(COLUMNS, row, strict=True))
    return max(1 - named["recall"], HALF_A_SAMPLE) if quantity == "missed_recall" else named[quantity]


def inputs_of(run: Run, row: list[float], compute: str) -> dict[str, float]:
    """N, T, and D or C of a point."""
    spent = row[0] * (run["batch"] if compute == "samples" else run["flops"])
    return {"student": run["student"], "teacher": run["teacher"], compute: spent}


def rows_of(run: Run, least: int) -> list[list[float]]:
    """Of at least so many updates."""
    return [row for row in run["curve"] if row[0] >= least]


def points_of(runs: list[Run], quantity: str, variant: str) -> Points:
    compute, least = VARIANTS[variant]
    rows = [(number, run, row) for number, run in enumerate(runs) for row in rows_of(run, least)]
    columns = [inputs_of(run, row, compute) for _, run, row in rows]
    inputs = {name: np.array([column[name] for column in columns], float) for name in columns[0]}
    values = np.array([value(quantity, row) for _, _, row in rows])
    return Points(inputs, values, np.array([number for number, _, _ in rows]))


class HeldOut:
    """What a law predicts of runs that it has not seen, beside what they gave."""

    def __init__(self, law: PowerLaw, runs: list[Run], quantity: str, variant: str) -> None:
        compute, least = VARIANTS[variant]
        inside = [
            law.single_run(inputs_of(run, row, compute)).holds(value(quantity, row))
            for run in runs
            for row in rows_of(run, least)
        ]
        self.inside, self.points = sum(inside), len(inside)
        last = [run["curve"][-1] for run in runs]
        self.end = statistics.fmean(value(quantity, row) for row in last)
        self.predicted = law.single_run(inputs_of(runs[0], last[0], compute))
        self.holds = self.inside >= LEAST_SHARE * self.points and self.predicted.holds(self.end)

    def __str__(self) -> str:
        low, high = self.predicted.low, self.predicted.high
        return (
            f"{'predicted' if self.holds else '**not predicted**'}: {self.predicted.value:.3f} ({low:.3f} to "
            f"{high:.3f}), got {self.end:.3f}; {self.inside} of {self.points} points inside"
        )


def table(fits: Fits, held_out: Mapping[tuple[str, str], HeldOut]) -> str:
    """Parameters with intervals, scatter and what became of the held-out runs; or why there is no law."""
    lines = ["| | E | A, a (student) | G, g (teacher) | B, b (compute) | scatter of log L | held out, at its end |"]
    lines.append("|---" * 7 + "|")
    for (quantity, variant), law in fits.items():
        title, compute = f"{QUANTITIES[quantity]}, {variant}", VARIANTS[variant][0]
        if isinstance(law, str):
            lines.append(f"| {title} | {law} | | | | | |")
            continue
        found = law.parameters()
        cells = [
            law.left_out.get(name) or f"{_shown(found[f'A {name}'])}; {_shown(found[f'a {name}'])}"
            for name in ("student", "teacher", compute)
        ]
        cells = [_shown(found["E"]), *cells, f"{law.scatter:.3f}", str(held_out[quantity, variant])]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(found: Interval) -> str:
    value, low, high = (f"{number:.2g}" if number > NOTHING else "0" for number in found)
    return f"{value} ({low} to {high})"


def packaged(fits: Fits, held_out: Mapping[tuple[str, str], HeldOut], runs: list[Run]) -> ScalingLaw:
    """The laws in samples, each as far as it was tried."""
    laws, unknown, tried = {}, {}, []
    for quantity in QUANTITIES:
        law = fits[quantity, FIRST]
        if isinstance(law, str):
            unknown[quantity] = law
            continue
        found, name = held_out[quantity, FIRST], quantity.replace("_", " ")
        tried.append(f"{name} {'within' if found.holds else 'NOT within'} its interval")
        laws[quantity] = law if not found.holds else _up_to(law, runs)
    size = max(run["student"] for run in runs)
    sentence = f"tried on held-out students of {size:,} weights: {', '.join(tried)}" if tried else "not tried"
    return ScalingLaw(PROBLEM, MEASURED, laws, unknown, sentence)


def _up_to(law: PowerLaw, runs: list[Run]) -> PowerLaw:
    """The law with the ranges of all runs."""
    measured = points_of(runs, "distance", FIRST).inputs
    return dataclasses.replace(law, ranges={name: (float(x.min()), float(x.max())) for name, x in measured.items()})


@styled
def picture(fits: Fits, runs: list[Run], held_out: list[Run], path: Path) -> None:
    """Every quantity against FLOPs, for the teacher that all students have."""
    figure = new_figure(11.5, 4.0)
    teacher = held_out[0]["teacher"]
    shown = [run for run in runs if run["teacher"] == teacher] + held_out
    for axes, (quantity, title) in zip(_panels(figure, len(QUANTITIES)), QUANTITIES.items(), strict=True):
        law = fits[quantity, FIRST]
        sizes = sorted({run["student"] for run in shown})
        for place, size in enumerate(sizes):
            unseen = size == held_out[0]["student"]
            colour = RED if unseen else str(0.75 - 0.7 * place / len(sizes))
            of_size = [run for run in shown if run["student"] == size]
            _drawn(axes, of_size, quantity, colour, f"{size / 1e3:.0f}k" + ", held out" * unseen)
            if isinstance(law, PowerLaw):
                _law_drawn(axes, law, of_size[0], colour, unseen)
        axes.set(xscale="log", yscale="log", xlabel="TFLOP of the run", title=title)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    figure.axes[0].legend(title="weights of the student", title_fontsize=8)
    save_figure(figure, path)


def _panels(figure: Figure, number: int) -> list[Axes]:
    return list(figure.subplots(1, number))


def _drawn(axes: Axes, runs: list[Run], quantity: str, colour: str, label: str) -> None:
    """Mean and range over seeds."""
    spent = [row[0] * runs[0]["flops"] / 1e12 for row in runs[0]["curve"]]
    found = np.array([[value(quantity, row) for row in run["curve"]] for run in runs])
    mean = found.mean(axis=0)
    reach = np.stack([mean - found.min(axis=0), found.max(axis=0) - mean])
    axes.errorbar(spent, mean, reach, fmt="o", ms=3, lw=0.8, color=colour, label=label)


def _law_drawn(axes: Axes, law: PowerLaw, run: Run, colour: str, unseen: bool) -> None:
    """The law along a run; its band is of the mean, and of a single run where the run was held out."""
    updates = np.geomspace(VARIANTS[FIRST][1], run["curve"][-1][0], 40)
    at = [inputs_of(run, [n], "samples") for n in updates]
    found = [law.single_run(each) if unseen else law.mean(each) for each in at]
    spent = updates * run["flops"] / 1e12
    axes.plot(spent, [each.value for each in found], color=colour, lw=1.2)
    axes.fill_between(
        spent, [each.low for each in found], [each.high for each in found], color=colour, alpha=0.15, lw=0
    )


TRUTH = {"E": 0.3, "A student": 0.2, "A samples": 0.5, "a student": 0.5, "a samples": 0.7}


def synthetic(rng: np.random.Generator, scatter: float = 0.05) -> tuple[Points, dict[str, float]]:
    """Five sizes, three seeds and eight points of a known law; half of the variance of log L is a run's own."""
    sizes, spent = np.array([26e3, 59e3, 104e3, 232e3, 411e3]), 32 * 10 ** (1.2 + np.arange(8) / 5)
    student = np.repeat(sizes, 3 * len(spent))
    samples = np.tile(spent, 3 * len(sizes))
    runs = np.repeat(np.arange(3 * len(sizes)), len(spent))
    middle = {"student": float(np.exp(np.log(student).mean())), "samples": float(np.exp(np.log(samples).mean()))}
    strays = scatter / 2**0.5 * (rng.normal(size=3 * len(sizes))[runs] + rng.normal(size=len(runs)))
    columns = {"student": student, "samples": samples}
    return Points(columns, true_law(middle, columns) * np.exp(strays), runs), middle


def true_law(middle: Mapping[str, float], at: Mapping[str, Any]) -> Any:
    return TRUTH["E"] + sum(TRUTH[f"A {x}"] * (at[x] / middle[x]) ** -TRUTH[f"a {x}"] for x in middle)


def coverage(repetitions: int, scatter: float) -> dict[str, float]:
    """Share of intervals that hold the truth: parameters, the law where it was measured, and at a larger run."""
    larger = {"student": 640e3, "samples": 32.0 * 631}
    held: dict[str, list[bool]] = {}
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        points, middle = synthetic(rng, scatter)
        try:
            law = fit_power_law(points, replicas=100, seed=seed)
        except CannotSay:
            held.setdefault("refused", []).append(True)
            continue
        for name, interval in law.parameters().items():
            held.setdefault(name, []).append(interval.holds(TRUTH[name]))
        held.setdefault("the law in the middle", []).append(law.mean(middle).holds(true_law(middle, middle)))
        truth = true_law(middle, larger)
        held.setdefault("the law at a larger run", []).append(law.mean(larger).holds(truth))
        run = truth * np.exp(scatter * rng.normal())
        held.setdefault("a larger run", []).append(law.single_run(larger).holds(run))
    return {
        name: sum(found) / repetitions if name == "refused" else statistics.fmean(found) for name, found in held.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of tools/scaling_runs.py")
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--package", action="store_true", help="write what fdistill plan quotes")
    parser.add_argument("--check", type=int, default=0, metavar="REPETITIONS")
    parser.add_argument("--scatter", type=float, default=0.05, help="of log L in --check")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.check:
        found = coverage(options.check, options.scatter)
        write_json(options.out / f"coverage-{options.scatter:g}.json", found)
        print("\n".join(f"{name}: {share:.3f}" for name, share in found.items()))
        return
    if options.runs is not None:
        atomic_write(POINTS, written(collected(options.runs)))
    runs: list[Run] = json.loads(POINTS.read_text(encoding="utf-8"))["runs"]
    largest = max(run["student"] for run in runs)
    seen, unseen = ([run for run in runs if (run["student"] == largest) == out] for out in (False, True))
    fits: dict[tuple[str, str], PowerLaw | str] = {}
    for quantity, variant in product(QUANTITIES, VARIANTS):
        try:
            fits[quantity, variant] = fit_power_law(points_of(seen, quantity, variant), options.replicas)
        except CannotSay as reason:
            fits[quantity, variant] = str(reason)
    tried = {key: HeldOut(law, unseen, *key) for key, law in fits.items() if isinstance(law, PowerLaw)}
    atomic_write(options.out / "table.md", table(fits, tried))
    picture(fits, seen, unseen, options.out / "picture.png")
    if options.package:
        atomic_write(FILE, json.dumps(packaged(fits, tried, runs).to_json(), separators=(",", ":")) + "\n")
    print(table(fits, tried))


if __name__ == "__main__":
    main()
