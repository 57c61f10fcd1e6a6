"""Run one distillation once for each divergence and show side by side which modes the student keeps.

    python tools/demonstrate.py configs/quickstart/mixture.yaml --out runs/demonstrations/mixture
    python tools/demonstrate.py configs/quickstart/mode_dropping.yaml --out runs/demonstrations/mode_dropping

Further arguments go to `fdistill fit`, e.g. --trainer.max_steps 2000. Writes results.json (every divergence and
seed) and picture.png (the first seed) into --out.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import GaussianMixtureData, GenerativeDataModule, nearest_mode
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.metrics import class_entropy, frechet_distance, mode_weight_kl
from fdistill.evaluation.report.figure_file import save_figure
from fdistill.evaluation.report.grid import image_block

COVERED = 0.25  # a mode counts as covered when it holds at least this share of its true weight


class Oracle:
    """Which mode a sample belongs to, the true weights, and the features for the distance."""

    def __init__(self, data: GenerativeDataModule) -> None:
        train, self.held_out = data.train_samples.copied(), data.held_out_samples.copied()
        self.num_modes = data.num_classes
        self.mixture = data.parameters() if isinstance(data, GaussianMixtureData) else None
        if self.mixture is not None:
            self.weights = self.mixture.weights.double()
        else:
            self.weights = torch.bincount(train.classes, minlength=self.num_modes).double() / len(train.classes)
        self.extractor = default_extractor(data.sample_shape, self.num_modes)
        self.extractor.prepare(train.x, train.classes, self.num_modes, 0)

    def modes(self, samples: Tensor) -> Tensor:
        if self.mixture is not None:
            return nearest_mode(samples, self.mixture)
        return self.extractor.classify(self.extractor.extract(samples))

    def judge(self, samples: Tensor) -> dict[str, Any]:
        modes = self.modes(samples)
        shares = torch.bincount(modes, minlength=self.num_modes).double() / len(modes)
        reference = self.extractor.extract(self.held_out.x)
        return {
            "modes_covered": int((shares >= COVERED * self.weights).sum()),
            "mode_weight_kl": float(mode_weight_kl(modes, self.weights)),
            "class_entropy": float(class_entropy(modes, self.num_modes)),
            "frechet_distance": float(frechet_distance(self.extractor.extract(samples), reference)),
            "mode_weights": shares.tolist(),
        }


def distil(config: str, divergence: str, seed: int, out: Path, n: int, overrides: list[str]) -> tuple[Tensor, float]:
    arguments = [
        "fit",
        "--config",
        "configs/trainer.yaml",
        "--config",
        config,
        "--model.objective.divergence",
        divergence,
    ]
    folder = out / f"{divergence}-{seed}"
    arguments += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
    arguments += overrides
    started = time.perf_counter()
    cli = run_trainer(arguments)
    model = cli.model.generative_model()
    return model.sample(model.noise(n, 1000 + seed), model.labels(n)), time.perf_counter() - started


def picture(shown: dict[str, tuple[Tensor, dict[str, Any]]], oracle: Oracle, path: Path) -> None:
    columns = {"Real data": (oracle.held_out.x, oracle.judge(oracle.held_out.x)), **shown}
    figure = Figure(figsize=(2.9 * len(columns), 4.5), facecolor="white", layout="constrained")
    axes = figure.subplots(2, len(columns), height_ratios=(2.6, 1), sharey="row", squeeze=False)
    for (title, (samples, numbers)), top, bottom in zip(columns.items(), axes[0], axes[1], strict=True):
        top.set_title(title, fontsize=11)
        if samples.ndim == 2:
            top.scatter(*samples[:1500, :2].T, s=2, alpha=0.4, color="#2a66b0", linewidths=0)
            top.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
        else:
            top.imshow(image_block(samples[:49], 7))
            top.set_axis_off()
        index = range(oracle.num_modes)
        bottom.bar(index, oracle.weights, color="#d8dee6", width=0.9, label="data")
        bottom.bar(index, numbers["mode_weights"], color="#2a66b0", width=0.5, label="student")
        bottom.set_xticks(list(index))
        bottom.set_xlabel(
            f"{numbers['modes_covered']} of {oracle.num_modes} modes, weight KL {numbers['mode_weight_kl']:.2f}",
            fontsize=9,
        )
        bottom.spines[["top", "right"]].set_visible(False)
    axes[1][0].set_ylabel("share of samples")
    save_figure(figure, path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--divergences", nargs="+", default=["ReverseKL", "JensenShannon", "ForwardKL"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n", type=int, default=2000, help="samples of each student")
    parser.add_argument("--out", type=Path, required=True)
    options, overrides = parser.parse_known_args()
    oracle, shown, rows = None, {}, []
    for seed in options.seeds:
        for divergence in options.divergences:
            samples, seconds = distil(options.config, divergence, seed, options.out, options.n, overrides)
            if oracle is None:
                oracle = Oracle(data_of(options.config))
            numbers = oracle.judge(samples)
            rows.append({"divergence": divergence, "seed": seed, "seconds": round(seconds, 1), **numbers})
            if seed == options.seeds[0]:
                shown[divergence] = (samples, numbers)
    picture(shown, oracle, options.out / "picture.png")
    write_json(options.out / "results.json", {"config": options.config, "n": options.n, "rows": rows})
    print(f"{'divergence':<16}{'seed':>5}{'modes':>7}{'weight KL':>11}{'entropy':>9}{'Frechet':>9}{'seconds':>9}")
    for row in rows:
        print(
            f"{row['divergence']:<16}{row['seed']:>5}{row['modes_covered']:>7}{row['mode_weight_kl']:>11.3f}"
            f"{row['class_entropy']:>9.3f}{row['frechet_distance']:>9.3f}{row['seconds']:>9.1f}"
        )
    print(f"wrote {options.out / 'picture.png'} and {options.out / 'results.json'}")


def data_of(config: str) -> GenerativeDataModule:
    """The data module of a configuration, without a trainer."""
    from omegaconf import OmegaConf

    spec = OmegaConf.to_container(OmegaConf.load(config).data)
    return GenerativeDataModule.from_spec({**spec, "class_path": f"fdistill.data.{spec['class_path']}"})


if __name__ == "__main__":
    main()
