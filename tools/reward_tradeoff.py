"""What a reward costs a one-step student: reward against recall and diversity, by six ways, over their strength.

    python tools/reward_tradeoff.py --out runs/reward-tradeoff --seeds 3
    python tools/reward_tradeoff.py --out runs/reward-demonstration --seeds 1 --demonstration

Students of 8 x 8 digits start as digits-student and go on for --turns fused turns by reverse KL (DMD2 without
its adversarial term, which would pull back to the data): with L - beta r
(`RewardAugmented`), from a tilted teacher (`TiltedTeacher`), or from a teacher tuned by configs/quickstart/reward.yaml
for so many turns ("tuned teacher"); with nothing ("plain"), or sampled as the best of N. Those of "best of N data" have
an adversarial term of weight .3, whose 1,000 real samples, of one seed, are the teacher's best of N. A "two-step
student" (sigma 5, then 1) goes on as "plain" does, and is then tuned as the teacher is, with eta = infinity. "teacher"
is the tuned teacher itself, by its own sampler. The reward is Brightness. Each is measured by `--samples` samples of
each class: reward; recall, precision and Vendi score in the features of a classifier, beside as many training samples;
and the mean Vendi score of the samples of one class.

Writes one JSON file a student, which another run with the same --out does not compute again, and from all that are
there table.md, tradeoff.png and samples.png.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fdistill
from fdistill.cli.fit import run_trainer
from fdistill.cli.main import main as command
from fdistill.core.atomic_files import atomic_write, write_json
from fdistill.core.random import fold_seed
from fdistill.data import Digits, ImageFolder
from fdistill.evaluation.report.figure_file import INK, new_figure, save_figure, styled
from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.reward_gap import METRICS, GapProbe
from fdistill.evaluation.samples import Samples, numbers
from fdistill.objectives import DMD2, Objective, RewardAugmented, TiltedTeacher
from fdistill.objectives.image_rewards import Brightness
from fdistill.sampling.generator import GenerativeModel
from fdistill.training.best_of import best_of, best_of_kl
from fdistill.training.judging import judged

STRENGTHS: dict[str, tuple[float, ...]] = {
    "plain": (0,),
    "best of N": (2, 4, 16, 64),
    "L - beta r": (15, 5, 40),
    "tilted teacher": (50, 20, 100),
    "tuned teacher": (15, 40),
    "best of N data": (1, 4, 16),
    "two-step student": (0, 10, 30),
    "teacher": (0, 15, 40),
}
DEMONSTRATION: dict[str, tuple[float, ...]] = {
    "teacher": (0, 25),
    "plain": (0,),
    "best of N": (4, 16),
    "L - beta r": (20,),
    "tuned teacher": (25,),
}
COLOURS = {
    "teacher": "#8a8f98",
    "plain": INK,
    "best of N": "#3c8d5a",
    "L - beta r": "#b3402a",
    "tilted teacher": "#2563a8",
    "tuned teacher": "#c28f2c",
    "best of N data": "#8fc7a3",
    "two-step student": "#8a4fa3",
}
NUMBERS = {"recall": "recall", "precision": "precision", "Vendi / real": "vendi_ratio", "Vendi of a class": "per_class"}
SHOWN = 30  # samples of each student in the picture


class Cell(NamedTuple):
    """One student."""

    way: str
    strength: float
    seed: int

    @property
    def title(self) -> str:
        return f"{self.way}, {self.strength:g}" if self.strength else self.way


class Study:
    """What the students share: data, measures, the place of results."""

    def __init__(self, out: Path, turns: int, samples: int) -> None:
        self.out, self.turns = out, turns
        self.data, self.reward = Digits(), Brightness()
        self.probe = GapProbe(self.data, (80.0, 0.02), seeds=samples, seed=1)
        self.students: dict[int, GenerativeModel] = {}

    def pictures(self, cell: Cell) -> Tensor:
        """Samples [10 x samples, 1, 8, 8] of a cell, those of a class together, of equal latents."""
        seeds = self.probe.probe
        if cell.way == "best of N":
            condition, latents = seeds.condition.repeat(seeds.seeds), fold_seed(seeds.seed, 0)
            plain, candidates = self.plain(cell.seed), int(cell.strength)
            return best_of(plain, self.probe.n, candidates, self.reward, latents, condition).samples
        if cell.way in ("teacher", "two-step student"):
            return seeds.pictures(fdistill.load(self.tuned(cell)), 0)
        return seeds.pictures(self.plain(cell.seed) if cell.way == "plain" else self.distilled(cell), 0)

    def plain(self, seed: int) -> GenerativeModel:
        """The student without a reward, distilled once."""
        if seed not in self.students:
            self.students[seed] = self.distilled(Cell("plain", 0, seed))
        return self.students[seed]

    def distilled(self, cell: Cell) -> GenerativeModel:
        objective: Objective = DMD2(0.3 if cell.way == "best of N data" else 0.0)
        if cell.way == "L - beta r":
            objective = RewardAugmented(objective, self.reward, cell.strength)
        if cell.way == "tilted teacher":
            objective = TiltedTeacher(objective, self.reward, cell.strength)
        teacher = self.tuned(cell) if cell.way == "tuned teacher" else "digits-teacher"
        start = fdistill.load("digits-student").denoiser
        given: dict[str, Any] = {"student": start, "ema_decay": 0.98, "fake_score_warmup": self.turns // 10}
        given |= {"renoise_levels": [1.0]} if cell.way == "two-step student" else {}
        given |= {"data": self.best(cell)} if cell.way == "best of N data" else {"batch_size": 64}
        how: dict[str, Any] = {"objective": objective, "steps": self.turns, "seed": cell.seed}
        return fdistill.distill(teacher, **how, **given)

    def best(self, cell: Cell) -> ImageFolder:
        """1,000 samples of the teacher, each the best of N, the same for all seeds of a student."""
        file = self.out / f"best-of-{cell.strength:g}.zip"
        asked = f"--n 1000 --best-of {cell.strength:g} --reward Brightness --out"
        if not file.exists() and command(["sample", "--checkpoint", "digits-teacher", *asked.split(), str(file)]):
            raise SystemExit(1)
        return ImageFolder(str(file), 8, 1, batch_size=64, seed=cell.seed)

    def two_step(self, cell: Cell) -> str:
        """The student of two steps without a reward, distilled once."""
        folder = self.out / "two-step" / f"start-seed{cell.seed}"
        if not folder.exists():
            fdistill.export(self.distilled(cell), folder)
        return str(folder)

    def tuned(self, cell: Cell) -> str:
        """The teacher, or the student of two steps, tuned for so many turns; a run that was stopped goes on."""
        start, changes, place = "digits-teacher", [], "teachers"
        if cell.way == "two-step student":
            start, changes, place = self.two_step(cell), ["--model.algorithm.eta=.inf", "--model.grid=null"], "two-step"
        if not cell.strength:
            return start
        folder = self.out / place / f"{cell.strength:g}-seed{cell.seed}"
        settings = {"max_steps": cell.strength, "limit_val_batches": 0, "default_root_dir": folder}
        flags = [f"--trainer.{name}={value}" for name, value in settings.items()]
        flags += [f"--model.teacher={start}", *changes, "--seed_everything", str(cell.seed)]
        run_trainer(["fit", "--config", "trainer", "--config", "quickstart/reward", *flags, "--ckpt_path", "last"])
        return str(folder / "checkpoints" / "last.ckpt")

    def measure(self, pictures: Tensor) -> dict[str, float | None]:
        seeds = self.probe.probe
        condition = seeds.condition.repeat(seeds.seeds)
        scores, _ = judged(self.reward, pictures, condition, None, torch.device("cpu"), 500)
        features = seeds.features(pictures)
        first = next(iter(features))
        given = numbers(METRICS, Samples(features[first]), self.probe.reference)
        diversity = seeds.diversity(features)[first].vendi
        error = float(scores.std()) / len(scores) ** 0.5
        return {"reward": float(scores.mean()), "error": error, "per_class": float(diversity.mean()), **given}

    def entry(self, cell: Cell) -> dict[str, Any]:
        """Measured now, or read from its file."""
        name = f"{cell.title.replace(' ', '_').replace(',', '')}-seed{cell.seed}-turns{self.turns}-n{self.probe.n}"
        file = self.out / "cells" / f"{name}.json"
        if not file.exists():
            started = time.process_time()
            with torch.enable_grad():
                pictures = self.pictures(cell)
            shown = pictures[:: max(1, len(pictures) // SHOWN)][:SHOWN].flatten(1)
            found = {**self.measure(pictures), "samples": [[round(v, 3) for v in one] for one in shown.tolist()]}
            write_json(file, {**found, "seconds": time.process_time() - started})
            print(f"{name}: reward {found['reward']:.3f}, recall {found['recall']:.3f}", flush=True)
        return {**cell._asdict(), "title": cell.title, **json.loads(file.read_text(encoding="utf-8"))}


def table(entries: list[dict[str, Any]]) -> str:
    """Mean over the seeds, and their range where there are several."""
    lines = ["| student | reward | " + " | ".join(NUMBERS) + " | KL | seeds |", "|" + "---|" * (4 + len(NUMBERS))]
    for title in dict.fromkeys(entry["title"] for entry in entries):
        mine = [entry for entry in entries if entry["title"] == title]
        words = [spread([entry[key] for entry in mine]) for key in ("reward", *NUMBERS.values())]
        kl = f"{best_of_kl(int(mine[0]['strength'])):.2f}" if mine[0]["way"] == "best of N" else ""
        lines.append(f"| {title} | {' | '.join(words)} | {kl} | {len(mine)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.3f} to {max(known):.3f})"


@styled
def tradeoff_figure(entries: list[dict[str, Any]], path: Path) -> None:
    """A panel a number: over the reward the mean of the seeds of each strength, joined by way."""
    drawn = {name: key for name, key in NUMBERS.items() if name != "precision"}
    figure = new_figure(
        3.4 * len(drawn) + 0.6, 3.6, "What a reward costs", "brightness to the right, diversity upwards"
    )
    for (name, key), axes in zip(drawn.items(), figure.subplots(1, len(drawn)), strict=True):
        for way, colour in COLOURS.items():
            mine = [entry for entry in entries if entry["way"] == way and entry[key] is not None]
            points = [(entry["reward"], entry[key]) for entry in mine]
            axes.plot(*zip(*points, strict=True), ".", ms=4, alpha=0.5, color=colour) if points else None
            middles = []
            for strength in sorted({entry["strength"] for entry in mine}):
                same = [(entry["reward"], entry[key]) for entry in mine if entry["strength"] == strength]
                middles.append([statistics.fmean(each) for each in zip(*same, strict=True)])
            if middles:
                axes.plot(*zip(*middles, strict=True), "o-", ms=4, lw=1, color=colour, label=way)
        axes.set_title(name)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("reward (mean brightness)")
    figure.axes[0].legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=200, help="of each student's distillation")
    parser.add_argument("--samples", type=int, default=100, help="measured, of each class")
    parser.add_argument("--ways", nargs="+", choices=STRENGTHS, default=list(STRENGTHS), help="those alone")
    parser.add_argument("--demonstration", action="store_true", help="few students; a teacher of the quick start")
    options = parser.parse_args()
    study, entries = Study(options.out, options.turns, options.samples), []
    strengths = DEMONSTRATION if options.demonstration else STRENGTHS
    for seed in range(options.seeds):
        for way, values in ((way, strengths[way]) for way in strengths if way in options.ways):
            for strength in values:
                entries.append(study.entry(Cell(way, strength, seed)))
                write(entries, options.out)
    print(table(entries))


def write(entries: list[dict[str, Any]], out: Path) -> None:
    atomic_write(out / "table.md", table(entries).encode())
    tradeoff_figure(entries, out / "tradeoff.png")
    first = {
        entry["title"]: torch.tensor(entry["samples"]).reshape(-1, 1, 8, 8) for entry in entries if not entry["seed"]
    }
    sample_grid_figure(first, out / "samples.png", n_per_row=SHOWN)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
