"""Does the alarm of the seeds ring when it should, and only then? Students collapsed on purpose, and healthy ones.

    python tools/benchmark_prompt_diversity.py --out runs/benchmark_prompt_diversity

The conditions are the ten digits, the student and the teacher those that ship. Each set of bands is of teacher draws of
its own; students are judged by one evaluation (patience 1). Healthy are further draws of the student, and the draws of
the teacher behind the other sets of bands. Writes seeds.json and a table in Markdown.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.atomic_files import atomic_write
from fdistill.core.random import generator_for
from fdistill.data import Digits
from fdistill.evaluation.seed_diversity import Found, SeedAlarm, SeedProbe, default_spaces
from fdistill.io.load import load_model

COLLAPSES = {
    "one pose": (0.3, 0.5, 0.7, 0.9, 1.0),  # share of the way from each picture to the first of its class
    "few pictures": (8, 4, 2, 1),  # different ones in a class
    "brightness alone": (0.3, 0.6),  # range of gain and offset of one pose
    "half of the classes": (0.5, 0.7, 0.9, 1.0),  # one pose, of classes 0 to 4
}


class Row(NamedTuple):
    """What students with one collapse got."""

    kind: str
    strength: float
    ratio_features: float
    ratio_patches: float
    alarms: int
    of: int
    named: float  # share of the collapsed classes that were named
    wrongly: float  # share of the other classes that were named


def collapsed(x: Tensor, kind: str, strength: float, seed: int) -> tuple[Tensor, list[int]]:
    """Pictures [N, S, ...] after a collapse, and the classes that have it."""
    first = x[:, :1]
    if kind == "few pictures":
        return x[:, torch.arange(x.shape[1]) % int(strength)], list(range(len(x)))
    if kind == "brightness alone":
        gain, offset = torch.rand(2, *x.shape[:2], 1, 1, 1, generator=generator_for(seed, 11)) * strength
        return first * (1 - gain) + offset, list(range(len(x)))
    moved = first + (1 - strength) * (x - first)
    if kind == "one pose":
        return moved, list(range(len(x)))
    half = len(x) // 2
    return torch.cat([moved[:half], x[half:]]), list(range(half))


def judged(bands: list[list[Found]], names: list[str], which: int, found: Found) -> tuple[bool, dict, list[int]]:
    """One evaluation against one set of bands."""
    verdict = SeedAlarm(bands[which], names, patience=1).update(found)
    return verdict.alarm, verdict.numbers, verdict.collapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_prompt_diversity"))
    parser.add_argument("--healthy", type=int, default=200, help="healthy evaluations of the student")
    parser.add_argument("--sets", type=int, default=10, help="sets of bands, and collapses of each kind and strength")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Digits()
    teacher, student = (load_model(f"checkpoints/digits-{kind}") for kind in ("teacher", "student"))
    probe = SeedProbe(data.named_conditions(10), default_spaces(data.sample_shape, 10), seed=arguments.seed)
    for extractor in probe.spaces.values():
        extractor.keep_learned()
    probe.prepare(data.train_samples, 10)
    names, sets = probe.names, arguments.sets
    draws = [probe.measure(probe.pictures(teacher, i)) for i in tqdm(range(4 * sets), desc="teacher")]
    bands = [draws[4 * i : 4 * i + 4] for i in range(sets)]

    well = [probe.measure(probe.pictures(student, 10_000 + i)) for i in tqdm(range(arguments.healthy), desc="healthy")]
    healthy = [judged(bands, names, i % sets, found) for i, found in enumerate(well)]
    others = [judged(bands, names, i, draws[j]) for i in range(sets) for j in range(4 * sets) if j // 4 != i]
    rows = []
    for kind, strengths in tqdm(COLLAPSES.items(), desc="collapses"):
        for strength in strengths:
            found = []
            for i in range(sets):
                pictures = probe.pictures(student, 20_000 + i).unflatten(0, (-1, probe.seeds))
                broken, classes = collapsed(pictures, kind, strength, i)
                found.append(judged(bands, names, i, probe.measure(broken.flatten(0, 1))))
            hits = sum(len(set(named) & set(classes)) for _, _, named in found)
            misses = sum(len(set(named) - set(classes)) for _, _, named in found)
            ratios = [sum(n[f"vendi_ratio_{s}"] for _, n, _ in found) / sets for s in ("features", "patches")]
            rest = len(names) - len(classes)
            alarms = sum(alarm for alarm, _, _ in found)
            wrongly = misses / (sets * rest) if rest else 0.0
            rows.append(Row(kind, strength, *ratios, alarms, sets, hits / (sets * len(classes)), wrongly))
    false = {
        "student": [sum(alarm for alarm, _, _ in healthy), len(healthy)],
        "teacher": [sum(alarm for alarm, _, _ in others), len(others)],
    }
    lines = ["| collapse | strength | Vendi ratio, features | patches | alarms | classes named | named wrongly |"]
    lines.append("|---" * 7 + "|")
    lines += [
        f"| {row.kind} | {row.strength:g} | {row.ratio_features:.2f} | {row.ratio_patches:.2f} | "
        f"{row.alarms} of {row.of} | {100 * row.named:.0f}% | {100 * row.wrongly:.0f}% |"
        for row in rows
    ]
    result = {"false_alarms": false, "collapses": [row._asdict() for row in rows]}
    atomic_write(arguments.out / "seeds.json", json.dumps(result, indent=1))
    atomic_write(arguments.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    for name, (alarms, count) in false.items():
        print(f"false alarms of the healthy {name}: {alarms} of {count} evaluations")


if __name__ == "__main__":
    main()
