"""Does the collapse alarm ring when it should, and only then? Six collapses at four strengths, and healthy runs.

    python tools/benchmark_collapse.py --out runs/benchmark_collapse

Digits: the shipped student, compared in features of a small classifier; its modes are 30 cells that k-means finds in
the training images, and nobody tells the alarm. Mixture: 40 modes, a student that makes 5% bridges between them. A
collapse is two evaluations of fresh samples; healthy runs are rows of evaluations. Writes collapse.json and tables
in Markdown: what was caught, and for each data which metric sees what.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from tqdm import tqdm

from fdistill.core.atomic_files import atomic_write
from fdistill.core.random import generator_for
from fdistill.data import Digits, GaussianMixtureData
from fdistill.evaluation.collapse_alarm import WATCHED, CollapseAlarm, bands
from fdistill.evaluation.comparison import TrainingComparison
from fdistill.evaluation.features import ClassifierFeatures, PixelFeatures
from fdistill.evaluation.metrics import standard_metrics
from fdistill.io.load import load_model

STRENGTHS = {
    "mode dropping": (0.1, 0.25, 0.5, 0.75),  # share of the modes
    "class dropping": (0.1, 0.2, 0.5, 0.9),  # share of the classes
    "shrinkage": (0.1, 0.3, 0.5, 0.7),  # towards the mean of each class
    "clumping": (0.3, 0.5, 0.7, 0.9),  # towards the nearest of n/20 samples
    "duplicates": (0.5, 0.75, 0.9, 0.98),  # share of the samples that repeat another
    "all identical": (0.25, 0.5, 0.75, 1.0),  # share of the samples that are one and the same
}
SEEN = 4.0  # standard deviations of healthy evaluations at which a metric is said to see a collapse
SHOWN = [
    *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "vendi_ratio", "tid"),
    *("anchored_tid", "count_ratio", "neighbour_distance_ratio", "local_coverage", "mode_coverage", "accuracy"),
    "memorized_fraction",
]


class Dropped(NamedTuple):
    """Share of the modes that a collapse dropped, and of the training samples that lie in them."""

    modes: float
    weight: float


class Case(NamedTuple):
    """A healthy student, and what is needed to break it."""

    probe: TrainingComparison
    draw: Callable[[int], tuple[Tensor, Tensor]]  # seed to n samples and the classes they were asked to be
    classes: int
    mode_of: Callable[[Tensor], Tensor]
    num_modes: int


def digits_case(seed: int) -> Case:
    data = Digits(batch_size=128)
    probe = TrainingComparison(data, ClassifierFeatures(), standard_metrics(10), 2000, seed)
    student = load_model("checkpoints/digits-student")
    cells = KMeans(30, n_init=3, random_state=seed).fit(
        probe.extractor.extract(data.train_samples.copied().x).double().numpy()
    )

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return student.sample(student.noise(probe.n, seed), probe.labels), probe.labels

    def mode_of(x: Tensor) -> Tensor:
        return torch.from_numpy(cells.predict(probe.extractor.extract(x).double().numpy())).long()

    return Case(probe, draw, 10, mode_of, 30)


def mixture_case(seed: int) -> Case:
    data = GaussianMixtureData(kind="forty", num_samples=8000, batch_size=128)
    probe = TrainingComparison(data, PixelFeatures(), standard_metrics(data.num_modes), 2000, seed)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = generator_for(seed, 7)
        x = data.train_samples.copied().x[torch.randint(len(data.train_samples), (probe.n,), generator=generator)]
        x = x + 0.2 * torch.randn(x.shape, generator=generator)
        bridge = torch.rand(len(x), 1, generator=generator) < 0.05
        way = torch.rand(len(x), 1, generator=generator)
        x = torch.where(bridge, way * x + (1 - way) * x.roll(1, 0), x)
        return x, data.read_modes(x)

    return Case(probe, draw, 40, data.read_modes, data.num_modes)


def broken(case: Case, kind: str, strength: float, seed: int) -> tuple[Tensor, Tensor, Dropped]:
    """Samples after a collapse, their wanted classes, and the share of the modes that were dropped."""
    x, wanted = case.draw(seed)
    generator, n = generator_for(seed, 3), len(x)
    if kind in ("mode dropping", "class dropping"):
        return dropped(case, kind, strength, seed)
    if kind == "shrinkage":
        for label in wanted.unique():
            mine = wanted == label
            x[mine] = x[mine].mean(0) + (1 - strength) * (x[mine] - x[mine].mean(0))
    elif kind == "clumping":
        anchors = x[torch.randperm(n, generator=generator)[: n // 20]]
        nearest = anchors[torch.cdist(x.flatten(1), anchors.flatten(1)).argmin(1)]
        x = nearest + (1 - strength) * (x - nearest)
    elif kind == "duplicates":
        source = torch.arange(n) % max(round((1 - strength) * n), 1)
        x, wanted = x[source], wanted[source]
    else:
        x[torch.randperm(n, generator=generator)[: round(strength * n)]] = x[0].clone()
    return x, wanted, Dropped(0.0, 0.0)


def dropped(case: Case, kind: str, strength: float, seed: int) -> tuple[Tensor, Tensor, Dropped]:
    """Without some modes or classes, in whose place fresh samples of the others stand."""
    by_class = kind == "class dropping"  # two evaluations of one collapse have seeds 2 i and 2 i + 1
    count = case.classes if by_class else case.num_modes
    gone = torch.randperm(count, generator=generator_for(seed // 2, 4))[: max(round(strength * count), 1)]
    _, asked = case.draw(seed)
    kept, wanted, draws = [], [], 0
    while sum(map(len, kept)) < len(asked):
        x, labels = case.draw(seed + 10_000 * draws)
        stays = ~torch.isin(labels if by_class else case.mode_of(x), gone)
        kept, wanted, draws = [*kept, x[stays]], [*wanted, labels[stays]], draws + 1
    x, wanted = torch.cat(kept)[: len(asked)], torch.cat(wanted)[: len(asked)]
    real = case.probe.data.train_samples.copied()
    weight = torch.isin(real.classes if by_class else case.mode_of(real.x), gone).double().mean()
    return x, asked if by_class else wanted, Dropped(len(gone) / count, float(weight))


class Watched:
    """Evaluates samples of one case, and judges rows of evaluations."""

    def __init__(self, case: Case, splits: int = 20) -> None:
        self.case = case
        self.bands = bands(case.probe.null(list(WATCHED), splits))

    def values(self, x: Tensor, wanted: Tensor) -> dict[str, float]:
        return self.case.probe.measure(self.case.probe.read("samples", x, wanted))

    def alarms(self, evaluations: list[dict[str, float]]) -> list[bool]:
        """What a run that makes these evaluations in a row hears."""
        alarm = CollapseAlarm(self.bands)
        return [alarm.update(values, i + 1).alarm for i, values in enumerate(evaluations)]


def study(name: str, case: Case, healthy: int, repeats: int) -> dict[str, Any]:
    watched = Watched(case)
    well = [watched.values(*case.draw(1 + i)) for i in tqdm(range(healthy), desc=f"{name}, healthy")]
    normal = {
        key: torch.tensor([values[key] for values in well], dtype=torch.float64) for key in SHOWN if key in well[0]
    }
    rows = []
    kinds = [kind for kind in STRENGTHS if name == "digits" or kind != "class dropping"]
    for kind in tqdm(kinds, desc=f"{name}, collapses"):
        for strength in STRENGTHS[kind]:
            caught, found, gone = [], [], []
            for repeat in range(repeats):
                pair = []
                for i in range(2):
                    x, wanted, share = broken(case, kind, strength, 5000 + 2 * repeat + i)
                    pair.append(watched.values(x, wanted))
                    gone.append(share)
                caught.append(watched.alarms(pair)[-1])
                found += pair
            mean = {key: sum(values[key] for values in found) / len(found) for key in normal}
            first = {n for n, edge in watched.bands.items() if edge.margin(mean[n] if n in mean else found[0][n]) < 0}
            recall = mean["recall"] / float(normal["recall"].mean())
            rows.append(
                {
                    "kind": kind,
                    "strength": strength,
                    "recall_ratio": recall,
                    "modes_dropped": gone[0].modes,
                    "weight_dropped": sum(share.weight for share in gone) / len(gone),
                    "must_be_caught": recall <= 0.5 or gone[0].modes >= 0.1,
                    "caught": sum(caught),
                    "of": repeats,
                    "outside": sorted(first),
                    "sigmas": {k: (mean[k] - float(v.mean())) / max(float(v.std()), 1e-9) for k, v in normal.items()},
                    "mean": mean,
                }
            )
    return {
        "n": case.probe.n,
        "bands": {key: [edges.low, edges.high] for key, edges in watched.bands.items()},
        "healthy": {key: [float(v.mean()), float(v.std())] for key, v in normal.items()},
        "false_alarms": sum(watched.alarms(well)),
        "healthy_outside": sum(any(e.margin(values[k]) < 0 for k, e in watched.bands.items()) for values in well),
        "evaluations": len(well),
        "collapses": rows,
    }


def detection_table(results: dict[str, Any]) -> str:
    lines = [
        "| | collapse | strength | recall left | modes dropped | their weight | caught | outside their bands |",
        "|---" * 8 + "|",
    ]
    for name, result in results.items():
        for row in result["collapses"]:
            caught = f"{row['caught']} of {row['of']}{' (must)' if row['must_be_caught'] else ''}"
            shares = (row[key] for key in ("recall_ratio", "modes_dropped", "weight_dropped"))
            left = f"{row['strength']:g} | " + " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| {name} | {row['kind']} | {left} | {caught} | {', '.join(row['outside']) or '-'} |")
    return "\n".join(lines)


def sight_table(name: str, collapses: list[dict[str, Any]]) -> str:
    """The weakest strength of each collapse from which on a metric is outside what healthy evaluations say."""
    kinds = list(dict.fromkeys(row["kind"] for row in collapses))
    lines = [f"{name.capitalize()}:", "", f"| metric | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for metric in SHOWN:
        cells = []
        for kind in kinds:
            rows = [row for row in collapses if row["kind"] == kind and metric in row["sigmas"]]
            seen = [abs(row["sigmas"][metric]) > SEEN for row in rows]
            first = next((i for i in range(len(seen)) if all(seen[i:])), None)
            sign = "" if first is None else ("+" if rows[-1]["sigmas"][metric] > 0 else "-")
            cells.append("" if not rows else "misses" if first is None else f"{rows[first]['strength']:g} {sign}")
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_collapse"))
    parser.add_argument("--healthy", type=int, default=100, help="healthy evaluations of each case")
    parser.add_argument("--repeats", type=int, default=5, help="collapses of each kind and strength")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = {"digits": digits_case, "mixture": mixture_case}
    results = {
        name: study(name, case(arguments.seed), arguments.healthy, arguments.repeats) for name, case in cases.items()
    }
    sights = [sight_table(name, result["collapses"]) for name, result in results.items()]
    tables = "\n\n".join([detection_table(results), *sights]) + "\n"
    atomic_write(arguments.out / "collapse.json", json.dumps(results, indent=1))
    atomic_write(arguments.out / "tables.md", tables)
    print(tables)
    for name, result in results.items():
        must = [row for row in result["collapses"] if row["must_be_caught"]]
        found = [sum(row[key] for row in rows) for rows in (must, result["collapses"]) for key in ("caught", "of")]
        print("{}, n={}: caught {} of {} that must be caught, {} of {} of all;".format(name, result["n"], *found))
        print("  {false_alarms} false alarms in {evaluations} healthy evaluations".format(**result), end=" ")
        print("({healthy_outside} outside a band)".format(**result))


if __name__ == "__main__":
    main()
