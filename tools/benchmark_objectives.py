"""Every objective on the same work: modes, distances, recall, Vendi score, anchored TID and time, over seeds.

    python tools/benchmark_objectives.py forty --out runs/benchmark_objectives
    python tools/benchmark_objectives.py digits --pairs runs/benchmark_objectives/pairs.safetensors \\
        --only "forward KL" SiD --seeds 0 1 2 --out runs/benchmark_objectives

Tasks: forty (the 40-mode benchmark), skewed (four unequal modes, a student that starts on one), grid (25 modes, low
noise, a student that starts on one), stacked and stacked_low (1,000 modes of stacked digits, wide and low noise) and
digits. The task's configuration is configs/benchmarks/TASK.yaml; of some, a configuration beside it comes first. Runs
that are already in --out are not repeated. Writes one JSON a run, table.md (medians over seeds with their range) and
picture.png (samples of the first seed) into --out/TASK.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import GaussianMixtureData, GenerativeDataModule, StackedDigits, nearest_mode, sample_mixture
from fdistill.data.digits import digit_splits
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.evaluation.metrics import frechet_distance, mode_weight_kl, precision_recall, tail_indices, vendi_score
from fdistill.evaluation.report.figure_file import save_figure
from fdistill.evaluation.report.grid import image_block
from fdistill.models.networks import GaussianMixture
from fdistill.sampling.generator import GenerativeModel
from fdistill.training import NonFiniteError

TASKS = ("forty", "skewed", "grid", "stacked", "stacked_low", "digits")
SPARE = 4_000  # samples that neighbours are searched in
DRAWS = 5  # sets of as many samples as are held out, where those are few; the numbers are their means
MODES_AT_LEAST = 0.25  # of its own share, for a mode of a mixture to be covered; of stacked digits one sample is enough


COLUMNS = {  # title and form of each number
    "modes": ("modes", ".0f"),
    "weight_kl": ("mode KL", ".3f"),
    "weight_kl_raw": ("mode KL with its bias", ".3f"),
    "mmd2": ("MMD2 at a mode's width", ".1e"),
    "mmd2_wide": ("MMD2 at the median distance", ".1e"),
    "log_density": ("E log p", ".2f"),
    "classes_hit": ("asked class", ".3f"),
    "frechet": ("Fréchet distance", ".3f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "vendi": ("Vendi / real", ".2f"),
    "anchored_tid": ("anchored TID", ".2f"),
    "cpu_seconds": ("CPU s", ".0f"),
}


def kl(divergence: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    """f-distill with a divergence."""
    return {"class_path": "FDistill", "init_args": {"divergence": divergence, **more}}


def uni(divergence: str, coefficient: str) -> dict[str, Any]:
    """Uni-Instruct with a divergence."""
    return {"class_path": "UniInstruct", "init_args": {"divergence": divergence, "coefficient": coefficient}}


def annealed(updates: int) -> dict[str, Any]:
    """alpha from 0, reverse KL, to 1, forward KL."""
    ramp = {"class_path": "Linear", "init_args": {"start": 0.0, "end": 1.0, "updates": updates}}
    return {"class_path": "AnnealedAlpha", "init_args": {"alpha": ramp}}


OBJECTIVES = {
    "reverse KL": kl("ReverseKL"),
    "softened reverse KL": kl("SoftenedReverseKL"),
    "Jensen-Shannon": kl("JensenShannon"),
    "squared Hellinger": kl("SquaredHellinger"),
    "forward KL": kl("ForwardKL"),
    "Jeffreys": kl("Jeffreys"),
    "Pearson": kl("PearsonChiSquared"),
    "alpha 0 to 1": kl(annealed(500)),
    "score of mixture": {"class_path": "ScoreOfMixture"},
    "Bregman, power -.5": {
        "class_path": "BregmanMatching",
        "init_args": {"divergence": {"class_path": "BregmanPower", "init_args": {"beta": -0.5}}},
    },
    "DMD2": {"class_path": "DMD2", "init_args": {"adversarial_weight": 0.3}},
    "f-distill JS, adversarial": kl("JensenShannon", adversarial_weight=0.3),
    "f-distill forward KL, adversarial": kl("ForwardKL", adversarial_weight=0.3),
    "DMD": {"class_path": "DMD"},
    "SiD 1.2": {"class_path": "SiD", "init_args": {"alpha": 1.2}},
    "SiD 1": {"class_path": "SiD", "init_args": {"alpha": 1.0}},
    "Fisher": {"class_path": "Fisher"},
    "SIM": {"class_path": "SIM"},
    "SiDA": {"class_path": "SiDA", "init_args": {"adversarial_weight": 0.3}},
    "Uni-Instruct JS, exact": uni("JensenShannon", "exact"),
    "Uni-Instruct JS, clipped": uni("JensenShannon", "clipped"),
    "Uni-Instruct JS, normalised": uni("JensenShannon", "normalised"),
    "Uni-Instruct forward KL, clipped": uni("ForwardKL", "clipped"),
    "Uni-Instruct forward KL, normalised": uni("ForwardKL", "normalised"),
    "adversarial": {"class_path": "Adversarial"},
}
MATCHES_SCORES = ("SiD", "SiDA", "Fisher", "UniInstruct")
HAS_NORMALISER = ("FDistill", "ScoreOfMixture", "BregmanMatching", "DMD", "DMD2", *MATCHES_SCORES)


class MixtureJudge:
    """Judges points: exact modes, exact density, distances to as many true samples."""

    numbers = ("modes", "weight_kl", "mmd2", "mmd2_wide", "log_density", "recall", "vendi", "anchored_tid")
    n, floor_name = 10_000, "true samples"

    def __init__(self, data: GaussianMixtureData) -> None:
        self.mixture = data.parameters()
        self.exact = GaussianMixture(*(p.tolist() for p in self.mixture))
        self.true = sample_mixture(self.mixture, self.n, torch.Generator().manual_seed(77))[0]
        self.widths = (float(self.mixture.stds[0]), float(torch.cdist(self.true[:2000], self.true[:2000]).median()))

    def real(self) -> Tensor:
        return sample_mixture(self.mixture, self.n, torch.Generator().manual_seed(78))[0].float()

    def __call__(self, samples: Tensor) -> dict[str, float]:
        x = samples.double()
        modes = nearest_mode(x, self.mixture)
        shares = torch.bincount(modes, minlength=len(self.mixture.weights)).double() / len(modes)
        density = [self.exact.log_prob(part, torch.zeros(len(part), dtype=x.dtype)).mean() for part in x.split(2500)]
        narrow, wide = (_mmd2(x, self.true, width) for width in self.widths)
        return {
            "modes": int((shares >= MODES_AT_LEAST * self.mixture.weights).sum()),
            "weight_kl": float(mode_weight_kl(modes, self.mixture.weights)),
            "mmd2": narrow,
            "mmd2_wide": wide,
            "log_density": float(sum(density) / len(density)),
            **_neighbourhood(x[:SPARE], self.true[:SPARE], self.widths[0]),
        }


class ImageJudge:
    """Judges images on classifier features: distance, recall, diversity; modes where the data has an oracle."""

    floor_name = "training images"

    def __init__(self, data: GenerativeDataModule) -> None:
        self.data, self.stacked = data, isinstance(data, StackedDigits)
        self.n = 10_000 if self.stacked else DRAWS * len(data.held_out_samples)
        digits = digit_splits(data.split_seed)[0] if self.stacked else data.train_samples.copied()
        self.extractor = ClassifierFeatures(epochs=20)
        self.extractor.prepare(digits.x, digits.classes, 10, 0)
        self.reference = self.features(data.held_out_samples.copied().x[:SPARE])
        modes = ("modes", "weight_kl", "weight_kl_raw") if self.stacked else ("classes_hit",)
        self.numbers = (*modes, "frechet", "precision", "recall", "vendi", "anchored_tid")

    def features(self, images: Tensor) -> Tensor:
        """Of every channel on its own."""
        return torch.cat([self.extractor.extract(images[:, c : c + 1]) for c in range(images.shape[1])], dim=1)

    def real(self) -> Tensor:
        """As many training images, of the held-out ones' classes where they have few."""
        train, wanted = self.data.train_samples.copied(), self.data.held_out_samples.labels
        if self.stacked:
            return train.x[: self.n]
        places = {int(c): iter((train.classes == c).nonzero().squeeze(1).tolist()) for c in wanted.unique()}
        return train.x[[next(places[int(c)]) for c in wanted]]

    def __call__(self, samples: Tensor) -> dict[str, float]:
        draws = samples[:SPARE].split(len(self.reference))
        found = [self._measured(self.features(draw)) for draw in draws if len(draw) == len(self.reference)]
        means = {name: statistics.fmean(row[name] for row in found) for name in found[0]}
        return means | (self._modes(samples) if self.stacked else {})

    def _measured(self, features: Tensor) -> dict[str, float]:
        distance = {"frechet": float(frechet_distance(features, self.reference))}
        classes = {} if self.stacked else self._classes(features)
        return classes | distance | _neighbourhood(features, self.reference, None)

    def _modes(self, samples: Tensor) -> dict[str, float]:
        modes = self.data.read_modes(samples)
        shares = torch.bincount(modes, minlength=1000).double() / len(modes)
        raw, hit = float(mode_weight_kl(modes, torch.full((1000,), 1e-3))), int((shares > 0).sum())
        return {"modes": hit, "weight_kl": raw - (hit - 1) / (2 * len(modes)), "weight_kl_raw": raw}

    def _classes(self, features: Tensor) -> dict[str, float]:
        wanted = self.data.held_out_samples.labels[: len(features)]
        return {"classes_hit": float((self.extractor.classify(features) == wanted).double().mean())}


def _neighbourhood(generated: Tensor, reference: Tensor, width: float | None) -> dict[str, float]:
    """Recall, the Vendi score over the reference's, and the anchored TID, at equal n."""
    n = min(len(generated), len(reference))
    generated, reference = generated[:n].double(), reference[:n].double()
    centre = reference.mean(dim=0)
    kernel = {"centre": centre} if width is None else {"kernel": "rbf", "bandwidth": width}
    few = slice(0, n if width is None else 1000)
    found = precision_recall(generated, reference)
    return {
        "precision": float(found.precision),
        "recall": float(found.recall),
        "vendi": float(vendi_score(generated[few], **kernel) / vendi_score(reference[few], **kernel)),
        "anchored_tid": float(tail_indices(generated, reference).anchored_tid),
    }


def _mmd2(x: Tensor, y: Tensor, width: float) -> float:
    """The biased (V) statistic under exp(-d^2 / 2 width^2): 2 (1 - E k) / n for equal laws."""

    def mean(a: Tensor, b: Tensor) -> float:
        blocks = (torch.cdist(part, b.float()).square_().mul_(-0.5 / width**2).exp_() for part in a.float().split(1000))
        return sum(float(block.double().sum()) for block in blocks) / (len(a) * len(b))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def objective_for(task: str, name: str) -> dict[str, Any]:
    """The objective's configuration: step sizes by noise level where samples have few entries."""
    chosen = json.loads(json.dumps(OBJECTIVES[name]))
    if chosen["class_path"] in HAS_NORMALISER:
        by_sample = task in ("digits", "stacked", "stacked_low")
        chosen.setdefault("init_args", {})["normaliser"] = "sample" if by_sample else "sigma"
    return chosen


def distil(task: str, name: str, seed: int, options: argparse.Namespace, folder: Path) -> tuple[GenerativeModel, float]:
    """Train one student; its model and the seconds of processor time that training took."""
    folder.mkdir(parents=True, exist_ok=True)
    change: dict[str, Any] = {"objective": objective_for(task, name)}
    if options.teacher is not None:
        change["teacher"] = str(options.teacher)
    if name == "DMD":
        change["pairs"] = str(options.pairs)
    if name == "adversarial":
        change["fake_score"] = None  # it has none, whatever the others start theirs from
    overlay = folder / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"init_args": change}}), encoding="utf-8")
    arguments = ["--config", "configs/trainer.yaml", "--config", f"configs/benchmarks/{task}.yaml"]
    arguments += ["--config", str(overlay), "--seed_everything", str(seed)]
    arguments += ["--trainer.default_root_dir", str(folder / f"{titled(name, options)}-{seed}")]
    started = time.process_time()
    cli = run_trainer(["fit", *arguments, *options.more])
    return cli.model.generative_model(), time.process_time() - started


def titled(name: str, options: argparse.Namespace) -> str:
    """The row of an objective, told apart by what further arguments change."""
    return f"{name}, {options.title}" if options.title else name


def run(options: argparse.Namespace) -> None:
    folder = options.out / options.task
    arguments = ["--config", "configs/trainer.yaml", "--config", f"configs/benchmarks/{options.task}.yaml"]
    first = folder / "first.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    change = {"objective": objective_for(options.task, "reverse KL")}
    if options.teacher is not None:
        change["teacher"] = str(options.teacher)
    first.write_text(yaml.safe_dump({"model": {"init_args": change}}), encoding="utf-8")
    cli = run_trainer([*arguments, "--config", str(first), "--trainer.default_root_dir", str(folder)], run=False)
    data = cli.datamodule
    judge = MixtureJudge(data) if isinstance(data, GaussianMixtureData) else ImageJudge(data)
    save(folder / "floor.json", lambda: (judge.real(), None), judge)
    teacher = cli.model.teacher_model()
    save(folder / "teacher.json", lambda: (drawn(teacher, judge, data, 1000), None), judge)
    write_table(folder, judge)
    for seed in options.seeds:
        for name in options.only or OBJECTIVES:
            if name == "DMD" and options.pairs is None:
                continue

            def trained(name: str = name, seed: int = seed) -> tuple[Tensor, float]:
                model, seconds = distil(options.task, name, seed, options, folder)
                return drawn(model, judge, data, 1000 + seed), seconds

            save(folder / f"{titled(name, options)}-{seed}.json", trained, judge)
            write_table(folder, judge)
    picture(folder, judge, data)


def drawn(model: GenerativeModel, judge: Any, data: GenerativeDataModule, seed: int) -> Tensor:
    """judge.n samples, of the held-out classes where the model has classes."""
    wanted = data.held_out_samples.labels
    labels = wanted.repeat(-(-judge.n // len(wanted)))[: judge.n] if model.num_classes else None
    return model.sample(model.noise(judge.n, seed), labels)


def save(path: Path, made: Callable[[], tuple[Tensor, float | None]], judge: Any) -> None:
    """Make, judge and keep, unless it is there."""
    if path.exists():
        return
    try:
        samples, seconds = made()
    except NonFiniteError as error:
        write_json(path, {"stopped": str(error)})
        print(path.stem, error, flush=True)
        return
    found = judge(samples)
    write_json(path, {"cpu_seconds": seconds, **found})
    torch.save(samples[:1500].half(), path.with_suffix(".pt"))
    print(path.stem, {name: round(found[name], 4) for name in judge.numbers}, seconds and round(seconds, 1), flush=True)


def found_runs(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Files of every row in the order of OBJECTIVES, variants after what they vary; floor and teacher first."""
    rows: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        title = path.stem if path.stem in ("floor", "teacher") else path.stem.rpartition("-")[0]
        rows.setdefault(title, []).append(path)
    known = ["floor", "teacher", *OBJECTIVES]
    order = {title: max((known.index(k), len(title)) for k in known if title.startswith(k)) for title in rows}
    return {title: rows[title] for title in sorted(rows, key=order.__getitem__)}


def write_table(folder: Path, judge: Any) -> None:
    """Medians over seeds, with the smallest and the largest."""
    names = (*judge.numbers, "cpu_seconds")
    lines = ["| | " + " | ".join(COLUMNS[name][0] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, paths in found_runs(folder, ".json").items():
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        good = [row for row in rows if "stopped" not in row]
        title = {"floor": judge.floor_name, "teacher": "teacher, 35 evaluations"}.get(title, title)
        seeds = "" if len(rows) == 3 or "cpu_seconds" not in rows[0] or rows[0]["cpu_seconds"] is None else len(rows)
        title += f" ({seeds} seed{'s' * (seeds > 1)})" if seeds else ""
        title += f" ({len(rows) - len(good)} of {len(rows)} stopped: not finite)" * (len(good) < len(rows))
        cells = [_range([row[name] for row in good if row[name] is not None], COLUMNS[name][1]) for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _range(values: list[float], form: str) -> str:
    if not values:
        return ""
    middle, low, high = (_short(v, form) for v in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _short(value: float, form: str) -> str:
    if abs(value) >= 1e4:
        return f"{value:.0e}"
    shown = f"{value:{form}}"
    return shown.replace("0.", ".", 1) if form[-1] == "f" and abs(value) < 1 else shown


def picture(folder: Path, judge: Any, data: GenerativeDataModule) -> None:
    """Samples of the first seed, side by side."""
    found = {title: paths[0] for title, paths in found_runs(folder, ".pt").items()}
    columns = 6
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.5 * rows), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in axes:
        place.set_axis_off()
    reach = float(data.held_out_samples.copied().x.abs().max()) * 1.05 if isinstance(judge, MixtureJudge) else 0.0
    for place, (name, path) in zip(axes, found.items(), strict=False):
        samples = torch.load(path, weights_only=True).float()
        place.set_title(judge.floor_name if name == "floor" else name, fontsize=9)
        if samples.ndim == 2:
            place.scatter(*samples.T, s=1.5, alpha=0.4, color="#2a66b0", linewidths=0)
            place.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        else:
            place.imshow(image_block(samples[:25], 5))
    save_figure(figure, folder / "picture.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--teacher", type=Path, help="checkpoint, for tasks whose teacher is trained")
    parser.add_argument("--pairs", type=Path, help="file of `fdistill pairs`, for DMD")
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, metavar="NAME")
    parser.add_argument("--title", help="of rows whose further arguments (any of `fdistill fit`) differ")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="none only writes table and picture anew"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options, options.more = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    run(options)


if __name__ == "__main__":
    main()
