"""The runs behind the scaling law of digits: students of several sizes, teachers of several sizes, judged on the way.

    python tools/scaling_runs.py --denoisers 4 8 12 16 20 24 --out runs/scaling
    python tools/scaling_runs.py --students 4 8 12 16 20 --teacher 8 --out runs/scaling
    python tools/scaling_runs.py --students 8 --teacher 4 --out runs/scaling
    python tools/scaling_runs.py --students 8 --teacher 16 --out runs/scaling
    python tools/scaling_runs.py --students 24 --teacher 8 --points 9 --out runs/scaling

A size w is a SmallUNet of widths [w, 2 w]. Each has one denoiser, trained on the digits from random weights (seed 0,
500 turns of 64, learning rate falling to a twentieth). It is the teacher of that size, and what a student of that size
starts from, as one would give it by `model.student`; the fake score starts as the teacher, which is the default. The
distillation is f-distill in fused turns: Jensen-Shannon, adversarial weight .3, batch 32, start at noise level 1.

One rule for all learning rates: 1 / w, as for hidden layers under Adam in arXiv 2203.03466 (table 3), anchored at w =
16, where the student has 1e-4, fake score and discriminator 1e-3, and a denoiser 2e-3; fake score and discriminator
have the teacher's w.

Judged after 10, 16, 25, ... updates, a fifth of a decade apart. Distance and recall: means over 2 draws of 500 samples
of the student's average against the 500 held-out digits, in the features of one classifier. Fake-score loss:
EDM-weighted denoising of 1,000 samples of the student as it is, the same noise for every run. FLOPs are those of
`fdistill plan`. Seconds are of the processor, on one thread, of training alone. Runs that are in --out already are not
repeated; one JSON a run.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor

from fdistill.core.atomic_files import write_json
from fdistill.core.random import generator_for
from fdistill.data import Digits
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.evaluation.metrics import frechet_distance, precision_recall
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.objectives import FDistill, denoising_loss
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.theory.preconditioning import EDM
from fdistill.theory.schedules import Linear
from fdistill.training import DistillationModule, TeacherModule
from fdistill.training.callbacks import LearningRate
from fdistill.training.planning import dry_turn

SIGMA_DATA, BATCH, DENOISER_BATCH, DENOISER_TURNS = 0.75, 32, 64, 500
ANCHOR = 16  # the size that has the learning rates of the fused turn in docs/benchmarks.md
DRAWS = 2


def adamw(parameters: Any, lr: float, beta: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta, 0.99), weight_decay=0.0, fused=True)


def points(number: int) -> list[int]:
    """Updates at which a student is judged."""
    return [round(10 ** (1 + k / 5)) for k in range(number)]


class Judge:
    """Distance and recall of generated digits."""

    def __init__(self) -> None:
        data = Digits()
        train, held_out = data.train_samples.copied(), data.held_out_samples.copied()
        self.labels, self.extractor = held_out.classes, ClassifierFeatures(epochs=20)
        self.extractor.prepare(train.x, train.classes, 10, 0)
        self.reference = self.extractor.extract(held_out.x)

    def __call__(self, draws: list[Tensor]) -> dict[str, float]:
        features = [self.extractor.extract(draw) for draw in draws]
        distances = [float(frechet_distance(draw, self.reference)) for draw in features]
        recalls = [float(precision_recall(draw, self.reference).recall) for draw in features]
        return {"distance": sum(distances) / len(draws), "recall": sum(recalls) / len(draws)}


class Curve(L.Callback):
    """Judges the student at given updates; what that takes is not counted."""

    def __init__(self, judge: Judge, at: list[int]) -> None:
        self.judge, self.at, self.rows, self.seconds = judge, at, list[dict[str, float]](), 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.resumed = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.updates not in self.at:
            return
        self.seconds += time.process_time() - self.resumed
        model = pl_module.generative_model()
        draws = [model.sample(model.noise(500, 1000 + i), self.judge.labels) for i in range(DRAWS)]
        found = self.judge(draws) | {"fake_score_loss": fake_score_loss(pl_module, self.judge.labels)}
        self.rows.append({"updates": pl_module.updates, "seconds": round(self.seconds, 2), **found})
        self.resumed = time.process_time()


@torch.no_grad()
def fake_score_loss(module: DistillationModule, labels: Tensor) -> float:
    """Of the fake score on samples of the present student, at the noise levels of training."""
    generator, labels = generator_for(7, 0), labels.repeat(DRAWS)
    noise = torch.randn(2, len(labels), *module.student.sample_shape, generator=generator)
    sigma = LogNormal(-0.5, 1.2).sample(len(labels), generator)
    x = module.student(noise[0], torch.ones(len(labels)), labels)
    noised = x + sigma.reshape(-1, 1, 1, 1) * noise[1]
    return float(denoising_loss(module.fake_score(noised, sigma, labels), x, sigma, SIGMA_DATA))


def train_denoiser(size: int, folder: Path, judge: Judge) -> None:
    """Train, keep and judge the denoiser of a size."""
    path = denoiser_file(size, folder)
    if path.exists():
        return
    torch.manual_seed(0)
    network = SmallUNet(resolution=8, widths=(size, 2 * size), num_classes=10)
    optimizer = functools.partial(adamw, lr=2e-3 * ANCHOR / size, beta=0.9)
    module = TeacherModule(network, EDM(SIGMA_DATA), LogNormal(-0.8, 1.2), optimizer, SIGMA_DATA, ema_decay=0.99)
    started = time.process_time()
    rate = LearningRate(Linear(1.0, 0.05, DENOISER_TURNS))
    trainer = quiet_trainer(accelerator="cpu", max_steps=DENOISER_TURNS, callbacks=[rate])
    trainer.fit(module, datamodule=Digits(DENOISER_BATCH))
    seconds = time.process_time() - started
    model = module.generative_model()
    found = judge([model.sample(model.noise(500, 1000), judge.labels)])
    facts = {"weights": weights(module.denoiser), "turns": DENOISER_TURNS, "seconds": round(seconds, 1), **found}
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(path, weights_only=False)
    write_json(path.with_suffix(".json"), facts)
    print(path.stem, facts, flush=True)


def distil(student: int, teacher: int, seed: int, number: int, folder: Path, judge: Judge) -> None:
    """Train and judge one student, and keep its curve."""
    path = folder / f"student{student}-teacher{teacher}-seed{seed}.json"
    if path.exists():
        return
    start = None if student == teacher else str(denoiser_file(student, folder))
    module = DistillationModule(
        str(denoiser_file(teacher, folder)),
        FDistill(JensenShannon(), 0.3),
        LogNormal(-0.5, 1.2),
        functools.partial(adamw, lr=1e-4 * ANCHOR / student, beta=0.5),
        functools.partial(adamw, lr=1e-3 * ANCHOR / teacher, beta=0.5),
        sigma_init=1.0,
        turn="fused",
        student=start,
        ema_decay=0.99,
        seed=seed,
    )
    flops = dry_turn(module, BATCH, 1).flops
    curve = Curve(judge, points(number))
    trainer = quiet_trainer(accelerator="cpu", max_steps=curve.at[-1], callbacks=[curve])
    trainer.fit(module, datamodule=Digits(BATCH, seed=seed))
    sizes = {"student": weights(module.student), "teacher": weights(module.teacher)}
    write_json(path, {**sizes, "seed": seed, "batch": BATCH, "flops": flops, "rows": curve.rows})
    print(path.stem, curve.rows[-1], flush=True)


def denoiser_file(size: int, folder: Path) -> Path:
    return folder / f"denoiser{size}.ckpt"


def weights(network: Denoiser) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoisers", type=int, nargs="*", default=[], metavar="SIZE")
    parser.add_argument("--students", type=int, nargs="*", default=[], metavar="SIZE")
    parser.add_argument("--teacher", type=int, default=8, metavar="SIZE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", type=int, default=8, help="at which a student is judged")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge()
    for size in options.denoisers:
        train_denoiser(size, options.out, judge)
    for seed in options.seeds:
        for student in options.students:
            distil(student, options.teacher, seed, options.points, options.out, judge)


if __name__ == "__main__":
    main()
