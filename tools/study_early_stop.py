"""Does StopEarly stop in time? Made curves choose the rule, long runs judge it.

    python tools/study_early_stop.py simulate --out runs/early_stop
    python tools/study_early_stop.py runs --problem mixture --seeds 0 1 2 --out runs/early_stop
    python tools/study_early_stop.py check --problem mixture --seeds 0 --out runs/early_stop

`simulate`: noisy curves of five families, 60 and 150 measurements over three times the way to the best, relative noise
of 1, 3 and 8%, independent and correlated (.7); the rule beside patience and those of Prechelt (1998). A curve counts
as stopped well where its noiseless value is within 10% of the lowest, not before half of the way to within 1% of it.

`runs`: students that nobody stops. A run is measured as `StudentDistance` does, from its fixed latents, which is what
the rule reads, and judged from fresh ones each time, which is what it is scored by: the mean of three judgements in a
row. "After 90% of the fall": of that from the first judgement to the lowest. The rule is replayed over each record by
the function that the callback calls. Recorded runs are not repeated. Writes PROBLEM.json, PROBLEM.md and PROBLEM.png.

`check`: trains a seed again with the callback, which has to stop at the turn that the replay says.
"""

import argparse
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure
from quiet_trainer import quiet_trainer

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.evaluation.metrics import PixelMoments, pixel_frechet_distance
from fdistill.evaluation.report.figure_file import save_figure
from fdistill.evaluation.stop_rule import why_stop
from fdistill.training.callbacks import StopEarly, StudentDistance
from fdistill.training.callbacks.measured import Listener

NAME = "metric/pixel_frechet_distance"
WITHIN = 1.1  # of the lowest value


def _mixture(adversarial_weight: float, divergence: str = "JensenShannon") -> dict[str, Any]:
    """Four unequal modes; a student that starts between them, with a discriminator of its own noised samples."""
    init_args = {"divergence": divergence, "normaliser": "sigma", "adversarial_weight": adversarial_weight}
    return {
        "model.objective": json.dumps({"class_path": "FDistill", "init_args": init_args}),
        "model.student.init_args.network.init_args.initial_output": "[0.0, 0.0]",
        "model.fake_score_warmup": 50,
        "data.batch_size": 128,
    }


PROBLEMS: dict[str, tuple[str, int, dict[str, Any]]] = {  # configuration, turns, changes; measured every 1/60 of them
    "mixture": ("quickstart/mixture.yaml", 600, _mixture(1.0)),
    "mixture_weak": ("quickstart/mixture.yaml", 600, _mixture(0.3)),
    "mixture_low": (  # modes are lost: low noise, and a fake score that follows slowly
        "quickstart/mixture.yaml",
        240,
        {
            **_mixture(0.0, "ReverseKL"),
            "model.noise_levels": json.dumps(
                {"class_path": "LogUniform", "init_args": {"sigma_min": 0.05, "sigma_max": 0.3}}
            ),
            "model.student_optimizer.init_args.lr": 2e-3,
            "model.fake_score_optimizer.init_args.lr": 3e-4,
        },
    ),
    "digits_low": (
        "benchmarks/digits.yaml",
        750,
        {
            "model.teacher": "digits-teacher",
            "model.objective": json.dumps({"class_path": "FDistill", "init_args": {"divergence": "JensenShannon"}}),
            "model.noise_levels": json.dumps({"class_path": "LogNormal", "init_args": {"mean": -1.7, "std": 0.3}}),
            "model.ema_decay": 0.98,
            "model.fake_score_optimizer.init_args.lr": 6e-4,
            "model.discriminator_lr": 5e-3,
            "data.batch_size": 32,
        },
    ),
}
Curve = tuple[list[float], list[float]]  # without noise, with noise


def patience(limit: int) -> Callable[[Sequence[float]], bool]:
    """No new lowest value in so many measurements."""
    return lambda y: len(y) - 1 - min(range(len(y)), key=y.__getitem__) >= limit


def generalisation_loss(percent: float) -> Callable[[Sequence[float]], bool]:
    """Prechelt's GL: 100 (y / lowest - 1) above a threshold."""
    return lambda y: 100 * (y[-1] / min(y) - 1) > percent


def quotient(threshold: float, strip: int = 5) -> Callable[[Sequence[float]], bool]:
    """Prechelt's PQ at the end of a strip: GL over the progress 1000 (mean / lowest of the strip - 1).

    A distillation has no training error that tells progress, so both are of the metric.
    """

    def stops(y: Sequence[float]) -> bool:
        if len(y) % strip:
            return False
        last = y[-strip:]
        progress = 1000 * (statistics.fmean(last) / min(last) - 1)
        return 100 * (y[-1] / min(y) - 1) > threshold * progress

    return stops


def strips_up(times: int, strip: int = 5) -> Callable[[Sequence[float]], bool]:
    """Prechelt's UP: higher at the ends of so many strips in a row than a strip before."""

    def stops(y: Sequence[float]) -> bool:
        ends = y[strip - 1 :: strip][-times - 1 :]
        return len(y) % strip == 0 and len(ends) > times and all(a < b for a, b in itertools.pairwise(ends))

    return stops


RULES: dict[str, Callable[[Sequence[float]], Any]] = {
    "rank tests, window 5": lambda y: why_stop(y, 5),
    "rank tests, window 7": lambda y: why_stop(y, 7),
    "patience 5": patience(5),
    "patience 10": patience(10),
    "patience 20": patience(20),
    "GL 5": generalisation_loss(5),
    "GL 10": generalisation_loss(10),
    "PQ .5": quotient(0.5),
    "UP 2": strips_up(2),
    "UP 3": strips_up(3),
}


def stopped_after(rule: Callable[[Sequence[float]], Any], values: Sequence[float]) -> int | None:
    """After how many measurements a rule first stops; None for never."""
    return next((n for n in range(1, len(values) + 1) if rule(values[:n])), None)


# made curves, over x from 0 to 3 with the best at 1


def family(kind: str, rng: random.Random) -> Callable[[float], float]:
    """A curve without noise: what it loses before, and by how much it rises after."""
    height, rate = 10 ** rng.uniform(-0.3, 1), rng.uniform(3, 8)
    rise, power = 10 ** rng.uniform(-1, -0.1), rng.choice((1, 1, 2))

    def rises(x: float) -> float:
        return rise * max(0.0, x - 1) ** power

    kinds: dict[str, Callable[[float], float]] = {
        "falls and rises": lambda x: 1 + height * math.exp(-rate * x) + rises(x),
        "falls and stays": lambda x: 1 + height * math.exp(-rate * x),
        "falls slowly for ever": lambda x: 0.7 + 0.3 * x ** -(rate / 8),
        "hump first": lambda x: (
            1 + height * (math.exp(-rate * x) + math.exp(-0.5 * ((x - 0.15) / 0.05) ** 2)) + rises(x)
        ),
        "plateau first": lambda x: 1 + height * math.exp(-12 * x) + 0.6 / (1 + math.exp(25 * (x - 0.65))) + rises(x),
    }
    return kinds[kind]


KINDS = ("falls and rises", "falls and stays", "falls slowly for ever", "hump first", "plateau first")


def made(kind: str, count: int) -> list[Curve]:
    """`count` curves of every size, noise and correlation."""
    found = []
    for n, noise, correlation in ((n, s, c) for n in (60, 150) for s in (0.01, 0.03, 0.08) for c in (0.0, 0.7)):
        rng = random.Random(f"{kind}, {n}, {noise}, {correlation}")
        for _ in range(count):
            curve, error, noisy = family(kind, rng), rng.gauss(0, 1), []
            exact = [curve(3 * (i + 1) / n) for i in range(n)]
            for value in exact:
                noisy.append(value * math.exp(noise * error))
                error = correlation * error + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
            found.append((exact, noisy))
    return found


def simulate(options: argparse.Namespace) -> None:
    lines = ["| rule | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    curves = {kind: made(kind, options.curves) for kind in KINDS}
    for name, rule in RULES.items():
        cells = []
        for kind in KINDS:
            good = early = 0
            for exact, noisy in curves[kind]:
                n = stopped_after(rule, noisy) or len(noisy)
                there = next(i for i, v in enumerate(exact, 1) if v <= 1.01 * min(exact))
                soon = n < there / 2
                early += soon
                good += not soon and exact[n - 1] <= WITHIN * min(exact)
            cells.append(f"{good / len(curves[kind]):.2f} ({early / len(curves[kind]):.2f} early)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulated.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


# real runs


class Judge(Listener):
    """Keeps what is measured, and beside it the distance of as many samples from fresh latents."""

    def __init__(self, seed: int, num_samples: int) -> None:
        self.seed, self.num_samples, self.rows = seed, num_samples, []

    def on_measured(self, trainer: L.Trainer, pl_module: Any, numbers: Any) -> None:
        row = {"turn": trainer.global_step, "measured": numbers[NAME]}
        if self.num_samples:
            row["judged"] = self._distance(trainer.datamodule.train_samples, pl_module.generative_model())
        self.rows.append(row)

    def _distance(self, real: Any, model: Any) -> float:
        labels = real.labels.repeat(-(-self.num_samples // len(real)))[: self.num_samples]
        noise = model.noise(self.num_samples, 1_000_000 + 10_000 * self.seed + len(self.rows))
        sides = PixelMoments(real.sample_shape), PixelMoments(real.sample_shape)
        for side, x in zip(sides, (model.sample(noise, labels), real.copied().x), strict=True):
            side.add(x)
        return float(pixel_frechet_distance(*(side.total() for side in sides), real.sample_shape))


def train(problem: str, seed: int, options: argparse.Namespace, *callbacks: L.Callback) -> float:
    """Processor seconds of a run with these callbacks beside the one that measures."""
    config, turns, changes = PROBLEMS[problem]
    turns = options.turns or turns
    changes = {"seed_everything": seed, "trainer.callbacks": "[]"} | changes
    configs = ["--config", "configs/trainer.yaml", "--config", f"configs/{config}"]
    cli = run_trainer(configs + [f"--{name}={value}" for name, value in changes.items()], run=False)
    started, measures = time.process_time(), StudentDistance(turns // 60)
    trainer = quiet_trainer(accelerator="cpu", max_steps=turns, callbacks=[*callbacks, measures])
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return time.process_time() - started


def judged(rows: list[dict[str, float]]) -> list[float]:
    """The mean of three judgements in a row; of two at the ends."""
    values = [row["judged"] for row in rows]
    return [statistics.fmean(values[max(0, i - 1) : i + 2]) for i in range(len(values))]


def scored(rows: list[dict[str, float]], rule: Callable[[Sequence[float]], Any]) -> dict[str, float]:
    """Where a rule stops a recorded run, and how good the student is there and at its best measured turn."""
    values, measured = judged(rows), [row["measured"] for row in rows]
    stop = stopped_after(rule, measured) or len(rows)
    best, kept = (min(range(len(v)), key=v.__getitem__) for v in (values, measured[:stop]))
    return {
        "stop": rows[stop - 1]["turn"],
        "best": rows[best]["turn"],
        "lowest": values[best],
        "at_stop": values[stop - 1] / values[best],
        "fallen": (values[0] - values[stop - 1]) / (values[0] - values[best]),
        "kept": values[kept] / values[best],
        "end": values[-1] / values[best],
        "early": stop < (best + 1) / 2,
        "never": stopped_after(rule, measured) is None,
    }


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Every rule over all seeds, and the seeds of the first rule."""
    heads = ["stops within 10%", "best.ckpt within 10%", "after 90% of the fall", "before half way", "never"]
    lines = [f"| rule | {' | '.join(heads)} | turns, of {_turns(runs)} |", "|---" * 7 + "|"]
    for name, rule in RULES.items():
        found = [scored(run["rows"], rule) for run in runs.values()]
        counts = [
            sum(not f["early"] and f["at_stop"] <= WITHIN for f in found),
            sum(not f["early"] and f["kept"] <= WITHIN for f in found),
            sum(f["fallen"] >= 0.9 for f in found),
            *(sum(f[what] for f in found) for what in ("early", "never")),
        ]
        turns = sorted(f["stop"] for f in found)
        cells = [*counts, f"{statistics.median(turns):.0f} ({turns[0]} to {turns[-1]})"]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| seed | best turn | lowest | stops at | there | of the fall | best.ckpt | at the end |",
        "|---" * 8 + "|",
    ]
    for seed, run in runs.items():
        f = scored(run["rows"], next(iter(RULES.values())))
        lines.append(
            f"| {seed} | {f['best']} | {f['lowest']:.3f} | {f['stop']}{' (never)' * f['never']} | {f['at_stop']:.2f} x "
            f"| {f['fallen']:.0%} | {f['kept']:.2f} x | {f['end']:.2f} x |"
        )
    return "\n".join(lines) + "\n"


def _turns(runs: dict[str, dict[str, Any]]) -> int:
    return next(iter(runs.values()))["rows"][-1]["turn"]


def picture(runs: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 3.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for run in runs.values():
        rows, found = run["rows"], scored(run["rows"], next(iter(RULES.values())))
        values = judged(rows)
        (line,) = axes.plot([r["turn"] for r in rows], values, linewidth=1, alpha=0.7)
        at = [r["turn"] for r in rows].index(found["stop"])
        axes.plot(found["stop"], values[at], "o", color=line.get_color(), markersize=5)
    axes.set(xlabel="turns", ylabel="pixel Fréchet distance, fresh samples", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=110)


def run(options: argparse.Namespace) -> None:
    kept = options.out / f"{options.problem}.json"
    runs = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for seed in options.seeds:
        if str(seed) not in runs:
            judge = Judge(seed, 1000)
            seconds = train(options.problem, seed, options, judge)
            runs[str(seed)] = {"seconds": seconds, "rows": judge.rows}
            write_json(kept, runs)
            print(f"{options.problem}, seed {seed}: {seconds:.0f} s of the processor", flush=True)
    shown = {str(seed): runs[str(seed)] for seed in options.seeds}
    (options.out / f"{options.problem}.md").write_text(table(shown), encoding="utf-8")
    picture(shown, options.out / f"{options.problem}.png")
    print(table(shown))


def check(options: argparse.Namespace) -> None:
    runs = json.loads((options.out / f"{options.problem}.json").read_text(encoding="utf-8"))
    for seed in options.seeds:
        expected, judge = scored(runs[str(seed)]["rows"], RULES["rank tests, window 5"])["stop"], Judge(seed, 0)
        train(options.problem, seed, options, StopEarly(NAME), judge)
        print(f"seed {seed}: the replay stops at turn {expected}, the run stopped at {judge.rows[-1]['turn']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulate", "runs", "check"])
    parser.add_argument("--problem", choices=PROBLEMS, default="mixture")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--turns", type=int, help="of a run, in place of the problem's")
    parser.add_argument("--curves", type=int, default=20, help="made ones of each family, size, noise and correlation")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"simulate": simulate, "runs": run, "check": check}[options.what](options)


if __name__ == "__main__":
    main()
