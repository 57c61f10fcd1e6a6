"""Quality against time for the fused and the alternating turn: same teacher, settings and seconds, seeds interleaved.

    python tools/benchmark_turns.py --teacher TEACHER.ckpt --out runs/benchmark_turns

Measuring time is not counted. Writes results.json and picture.png and prints a Markdown table of medians over seeds.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from quiet_trainer import quiet_trainer

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import Digits
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.metrics import frechet_distance, precision_recall
from fdistill.evaluation.report.figure_file import new_figure, save_figure, styled

TURNS = {
    "fused": ["--model.turn", "fused"],
    "alternating 1:1": ["--model.turn", "alternating", "--model.fake_updates_per_student", "1"],
    "alternating 5:1": ["--model.turn", "alternating", "--model.fake_updates_per_student", "5"],
    "alternating 5:1, samples reused": [
        *("--model.turn", "alternating", "--model.fake_updates_per_student", "5", "--model.reuse_generated", "true")
    ],
}
COLOURS = dict(zip(TURNS, ("#2a66b0", "#d1782c", "#6b9a3f", "#7b4fa3"), strict=True))


class Stopwatch(L.Callback):
    """Measures the student every `every` training seconds and stops the run after `seconds`."""

    def __init__(self, extractor: FeatureExtractor, data: Digits, every: float, seconds: float) -> None:
        self.extractor, self.reference = extractor, data.held_out_samples.copied()
        self.reference_features = extractor.extract(self.reference.x)
        self.every, self.seconds = every, seconds
        self.spent, self.rows = 0.0, []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.spent += time.perf_counter() - self.started
        if self.spent < self.every * (len(self.rows) + 1):
            return
        model = module.generative_model()
        features = self.extractor.extract(model.sample(model.noise(len(self.reference.x), 5), self.reference.labels))
        self.rows.append(
            {
                "seconds": self.every * (len(self.rows) + 1),
                "turns": trainer.global_step,
                "frechet_distance": float(frechet_distance(features, self.reference_features)),
                "recall": float(precision_recall(features, self.reference_features).recall),
            }
        )
        trainer.should_stop = self.spent >= self.seconds


def run(
    name: str, seed: int, options: argparse.Namespace, extractor: FeatureExtractor, data: Digits
) -> list[dict[str, Any]]:
    arguments = ["--config", "configs/trainer.yaml", "--config", "configs/quickstart/student.yaml"]
    arguments += ["--model.teacher", options.teacher, "--seed_everything", str(seed), *TURNS[name]]
    cli = run_trainer([*arguments, "--trainer.max_steps", "1000000", "--trainer.callbacks", "[]"], run=False)
    watch = Stopwatch(extractor, data, options.every, options.seconds)
    trainer = quiet_trainer(
        accelerator=options.accelerator,
        max_steps=-1,
        callbacks=[watch],
    )
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return watch.rows


@styled
def picture(rows: dict[str, dict[int, list[dict[str, Any]]]], path: Path) -> None:
    figure = new_figure(9, 3.4)
    for axes, column in zip(figure.subplots(1, 2), ("frechet_distance", "recall"), strict=True):
        for name, seeds in rows.items():
            for found in seeds.values():
                axes.plot([r["seconds"] for r in found], [r[column] for r in found], color=COLOURS[name], alpha=0.35)
            middle = [
                statistics.median(values)
                for values in zip(*([r[column] for r in f] for f in seeds.values()), strict=True)
            ]
            axes.plot([r["seconds"] for r in found], middle, color=COLOURS[name], linewidth=2, label=name)
        axes.set(xlabel="training seconds", ylabel=column.replace("_", " "))
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--only", nargs="+", choices=TURNS, default=list(TURNS), metavar="TURN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = Digits()
    extractor = default_extractor(data.sample_shape, data.num_classes)
    extractor.prepare(data.train_samples.copied().x, data.train_samples.labels, data.num_classes, 0)
    rows: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in options.only}
    for seed in options.seeds:
        for name in options.only:
            rows[name][seed] = run(name, seed, options, extractor, data)
            last = rows[name][seed][-1]
            print(f"{name}, seed {seed}: {last['turns']} turns, distance {last['frechet_distance']:.3f}", flush=True)
    write_json(options.out / "results.json", {"threads": torch.get_num_threads(), "rows": rows})
    picture(rows, options.out / "picture.png")
    times = [row["seconds"] for row in next(iter(rows[options.only[0]].values()))]
    print("| seconds | " + " | ".join(f"{t:.0f}" for t in times) + " |\n|---" + "|---" * len(times) + "|")
    for name, seeds in rows.items():
        for column in ("frechet_distance", "recall"):
            middle = [statistics.median(f[i][column] for f in seeds.values()) for i in range(len(times))]
            print(f"| {name}, {column} | " + " | ".join(f"{value:.3f}" for value in middle) + " |")


if __name__ == "__main__":
    main()
