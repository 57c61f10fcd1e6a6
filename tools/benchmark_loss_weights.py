"""Loss weights of an eps-predicting teacher: Fréchet distance and colour shift at 5 to 100 sampling steps, over seeds.

    python tools/benchmark_loss_weights.py
    python tools/benchmark_loss_weights.py --only Debias --seeds 1
    python tools/benchmark_loss_weights.py --seeds

Trains the teacher of configs/benchmarks/loss_weights.yaml (digits, linear variance-preserving path, uniform times) with
each weight and seed and samples it with DDIM at equally spaced times, every row from the same latents. Rows that are
already in --out are not repeated, so it may be stopped at any time and run in pieces. Writes one JSON a row, table.md
(medians over seeds with their range) and picture.png into --out.

Fréchet distance: 2 draws of 500 samples against the 500 held-out digits, in the features of one classifier. Colour
shift: root mean square over channels of their mean at T steps less that at the most steps.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import Digits, GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.metrics import frechet_distance
from fdistill.evaluation.report.figure_file import INK, new_figure, save_figure, styled
from fdistill.sampling import Euler, generate
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import PathGrid

CONFIG = "configs/benchmarks/loss_weights.yaml"
WEIGHTS = {"constant": "ConstantEps", "P2": "P2", "Min-SNR": "MinSNR", "Debias": "Debias"}
COLOURS = {"constant": "#6b7280", "P2": "#2a8a4a", "Min-SNR": "#2563a8", "Debias": "#d1571d"}
STEPS = (5, 10, 20, 50, 100)
DRAWS = 2  # sets of as many samples as are held out
LATENTS_SEED, FEATURES_SEED = 1000, 0
NUMBERS = {"frechet": ("Fréchet distance", "#.3g"), "shift": ("colour shift", ".4f")}
FLOOR = "floor"


def train(name: str, seed: int, turns: int, folder: Path) -> tuple[GenerativeModel, float]:
    """One teacher; its model and the seconds of processor time that training took."""
    overlay = folder / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"loss_weight": WEIGHTS[name]}}}), encoding="utf-8")
    arguments = ["--config", "configs/trainer.yaml", "--config", CONFIG, "--config", str(overlay)]
    arguments += ["--seed_everything", str(seed), "--trainer.max_steps", str(turns)]
    arguments += ["--trainer.default_root_dir", str(folder / f"{name}-{seed}")]
    started = time.process_time()
    cli = run_trainer(["fit", *arguments])
    return cli.model.generative_model(), time.process_time() - started


def judge(model: GenerativeModel, reference: Tensor, labels: Tensor, extractor: FeatureExtractor) -> dict[str, Any]:
    """Both numbers at every count of steps, by its name."""
    noise, wanted = model.noise(DRAWS * len(labels), LATENTS_SEED), labels.repeat(DRAWS)
    path = model.denoiser.preconditioning.path
    end = float(path.noise_ratio(torch.ones((), dtype=torch.float64)))
    distances, means = {}, {}
    for steps in STEPS:
        x = generate(Euler(), model.denoiser, noise, PathGrid(path, steps, end).levels(), wanted)
        draws = extractor.extract(x).split(len(reference))
        distances[steps] = statistics.fmean(float(frechet_distance(draw, reference)) for draw in draws)
        means[steps] = x.double().mean(dim=(0, 2, 3))
    shifts = {steps: float((mean - means[STEPS[-1]]).square().mean().sqrt()) for steps, mean in means.items()}
    return {"frechet": _named(distances), "shift": _named(shifts)}


def _named(values: dict[int, float]) -> dict[str, float]:
    """As JSON keeps it."""
    return {str(steps): value for steps, value in values.items()}


def run(options: argparse.Namespace) -> None:
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in options.seeds for name in options.only or WEIGHTS]
    missing = [(name, seed) for name, seed in jobs if not _is_done(folder / f"{name}-{seed}.json", options.turns)]
    if missing:
        data = Digits()
        extractor = default_extractor(data.sample_shape, data.num_classes)
        extractor.prepare(data.train_samples.copied().x, data.train_samples.labels, data.num_classes, FEATURES_SEED)
        reference, labels = extractor.extract(data.held_out_samples.copied().x), data.held_out_samples.labels
        write_json(folder / f"{FLOOR}.json", {"frechet": _floor(data, reference, extractor)})
    for name, seed in missing:
        model, seconds = train(name, seed, options.turns, folder)
        row = {"turns": options.turns, "cpu_seconds": seconds, **judge(model, reference, labels, extractor)}
        write_json(folder / f"{name}-{seed}.json", row)
        print(name, seed, {T: round(value, 3) for T, value in row["frechet"].items()}, round(seconds, 1), flush=True)
    rows = found_rows(folder)
    if rows:
        write_table(folder, rows)
        picture(folder, rows)


def _is_done(path: Path, turns: int) -> bool:
    """Whether the row is there; one of other turns does not belong beside it."""
    if not path.exists():
        return False
    made = json.loads(path.read_text(encoding="utf-8"))["turns"]
    if made != turns:
        raise SystemExit(f"{path} was made with {made} turns: expected {turns}; choose another --out or delete it")
    return True


def _floor(data: GenerativeDataModule, reference: Tensor, extractor: FeatureExtractor) -> float:
    """The distance of as many training digits."""
    chosen = [torch.randperm(len(data.train_samples), generator=torch.Generator().manual_seed(i)) for i in range(DRAWS)]
    draws = [extractor.extract(data.train_samples.copied().x[order[: len(reference)]]) for order in chosen]
    return statistics.fmean(float(frechet_distance(draw, reference)) for draw in draws)


def found_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What is there of every weight, a row a seed."""
    paths = {name: sorted(folder.glob(f"{name}-*.json")) for name in WEIGHTS}
    return {name: [json.loads(p.read_text(encoding="utf-8")) for p in found] for name, found in paths.items() if found}


def write_table(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Medians over seeds, with the smallest and the largest."""
    lines = []
    for number, (title, form) in NUMBERS.items():
        shown = [str(steps) for steps in STEPS if number == "frechet" or steps != STEPS[-1]]
        lines += [f"| {title}, steps | " + " | ".join(shown) + " | seeds |", "|---" * (len(shown) + 2) + "|"]
        for name, found in rows.items():
            cells = [_range([row[number][steps] for row in found], form) for steps in shown]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(found)} |")
        lines.append("")
    floor = json.loads((folder / f"{FLOOR}.json").read_text(encoding="utf-8"))["frechet"]
    seconds = statistics.median(row["cpu_seconds"] for found in rows.values() for row in found)
    turns = sorted({row["turns"] for found in rows.values() for row in found})
    lines += [f"Training digits: {floor:.3f}. {', '.join(map(str, turns))} turns, {seconds:.0f} CPU s a teacher."]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _range(values: list[float], form: str) -> str:
    middle, low, high = (f"{v:{form}}".rstrip(".") for v in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


@styled
def picture(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Both numbers against steps, a line for the median of each weight and a band for the range of its seeds."""
    figure = new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    for panel, (number, (title, _)) in zip((left, right), NUMBERS.items(), strict=True):
        for name, found in rows.items():
            shown = [steps for steps in STEPS if number == "frechet" or steps != STEPS[-1]]
            values = [[row[number][str(steps)] for row in found] for steps in shown]
            middle = [statistics.median(seeds) for seeds in values]
            panel.plot(shown, middle, color=COLOURS[name], lw=1.6, marker="o", ms=4, label=name)
            panel.fill_between(
                shown, *zip(*((min(s), max(s)) for s in values), strict=True), color=COLOURS[name], alpha=0.15, lw=0
            )
        panel.set(xscale="log", yscale="log", title=title, xlabel="sampling steps")
        panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
        panel.minorticks_off()
    floor = json.loads((folder / f"{FLOOR}.json").read_text(encoding="utf-8"))["frechet"]
    left.axhline(floor, color=INK, lw=1, ls=":", label="training digits")
    left.legend()
    save_figure(figure, folder / "picture.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none only writes table and picture")
    parser.add_argument("--only", nargs="+", choices=WEIGHTS, metavar="NAME")
    parser.add_argument("--turns", type=int, default=3600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_loss_weights"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run(options)


if __name__ == "__main__":
    main()
