"""A recipe for the text quick start's student, judged while it trains: a line of JSON and of text for each judgement.

    make text-quickstart
    python tools/text_trials.py --name longer --seed 10 --at 150 180 --out runs/text-trials -- --trainer.max_steps 180

After `--` come options of fdistill fit on top of configs/text_quickstart/student.yaml. At the updates of --at the
student's average is judged beside the teacher at the student's guidance: the mean of draws of 480 pictures on noise and
held-out images of the seeds --draws, which `text_seeds.py` does not use. A line says, for shown and for new captions,
accuracy less than the teacher's and the ratios of spread, recall, Fréchet distance and *noise*: the root mean square
of what of a pixel lies on no line between the caption's two colours, of which images have none.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.core.random import fold_seed
from fdistill.data import CaptionedDigits
from fdistill.data.captioned_digits import COLOURS, caption_parts
from fdistill.evaluation.caption_rows import CaptionMetrics, caption_sets
from fdistill.evaluation.features import CaptionFeatures
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.pictures import show
from fdistill.training.callbacks import LearningRate

SEEDS = 16
CONFIGS = ("configs/trainer.yaml", "configs/text_quickstart/student.yaml")
Rows = dict[str, dict[str, float]]


def off_line(pictures: Tensor, numbers: Tensor) -> float:
    """Root mean square distance of pixels [n, 3, 8, 8] from the line between ground and digit colour of a caption."""
    palette = 2 * torch.tensor(list(COLOURS.values())) - 1
    colour, ground = (palette[part][:, :, None, None] for part in caption_parts()[numbers, 1:].unbind(1))
    way, x = colour - ground, pictures.clamp(-1, 1) - ground
    along = (x * way).sum(1, keepdim=True) / way.square().sum(1, keepdim=True)
    return float((x - along * way).square().mean().sqrt())


class Judge:
    """Mean numbers of a model's pictures for both sets of captions, over the draws of some seeds."""

    def __init__(self, data: CaptionedDigits, seeds: list[int]) -> None:
        self.data = data
        self.metrics = CaptionMetrics(data, CaptionFeatures(data.split_seed).keep_learned(), 0)
        self.sets = {seed: caption_sets(data, SEEDS, seed) for seed in seeds}

    @torch.no_grad()
    def rows(self, model: GenerativeModel) -> Rows:
        """Leaves pictures of eight seeds of eight new captions in `shown`."""
        found = {}
        for i, key in enumerate(("shown", "new")):
            rows = []
            for seed, sets in self.sets.items():
                of, noise = sets[key], model.noise(len(sets[key].wanted), fold_seed(seed, i) % 2**32)
                x = model.decode(model.sample(noise, self.data.encoded.rows(of.wanted)))
                rows.append(self.metrics.row(x, of) | {"noise": off_line(x, of.wanted)})
            self.shown = x.unflatten(0, (-1, SEEDS))[::4, :8].flatten(0, 1)
            found[key] = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return found


class Judged(L.Callback):
    """Judges the average at some updates; appends to a file, and writes a picture of rows of one caption."""

    def __init__(self, judge: Judge, teacher: Rows, at: list[int], file: Path) -> None:
        self.judge, self.teacher, self.at, self.file = judge, teacher, at, file
        self.seconds, self.judged, self.last = 0.0, 0, time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.seconds += time.process_time() - self.last
        if module.updates in self.at and module.updates > self.judged:  # an alternating run has turns between updates
            self.judged = module.updates
            found = self.judge.rows(module.generative_model())
            line = {"update": module.updates, "seconds": round(self.seconds, 1), "rows": found}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            show(self.judge.shown).save(self.file.with_suffix(f".{module.updates}.png"))
            texts = " | ".join(beside(found[key], self.teacher[key]) for key in found)
            print(f"{self.file.stem} {module.updates:4d} {self.seconds:4.0f} s | {texts}", flush=True)
        self.last = time.process_time()


def beside(row: dict[str, float], teacher: dict[str, float]) -> str:
    """Accuracy less, and ratios."""
    names = ("spread", "recall", "frechet_distance", "noise")
    return f"{teacher['accuracy'] - row['accuracy']:+.3f} " + " ".join(f"{row[n] / teacher[n]:.3f}" for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--draws", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--at", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="of fdistill fit, after --")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    configs = [part for path in CONFIGS for part in ("--config", path)]
    folder = f"--trainer.default_root_dir={given.out / given.name}"
    cli = run_trainer([*configs, f"--seed_everything={given.seed}", folder, *given.options], run=False)
    judge = Judge(cli.datamodule, given.draws)
    kept = given.out / f"teacher-{'-'.join(map(str, given.draws))}.json"
    if not kept.is_file():
        write_json(kept, judge.rows(cli.model.teacher_model()))
    teacher = json.loads(kept.read_text(encoding="utf-8"))
    judged = Judged(judge, teacher, given.at, given.out / f"{given.name}-{given.seed}.jsonl")
    trainer: Any = cli.trainer
    trainer.callbacks = [c for c in trainer.callbacks if isinstance(c, LearningRate)] + [judged]
    trainer.fit(cli.model, datamodule=cli.datamodule)


if __name__ == "__main__":
    main()
