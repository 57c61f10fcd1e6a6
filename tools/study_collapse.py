"""Do deterministic samples of an eps-network crowd together, and what stops them? Six rows, growing widths.

    python tools/study_collapse.py --threads 1 --out runs/study_collapse

Every network learns with the same loss (constant weight on eps), the same noise levels (uniform times of the linear
path), the same turns and, but for two experts, as many weights. All rows are sampled with 99 evaluations on one grid:
the ODE (Heun), the SDE (GDDIM, eta 1), predictor-corrector; two experts, a skip and EDM preconditioning by the ODE.
"real" is training samples beside the same held-out ones. The weights are the last ones unless --ema averages them.

Writes one JSON file a network, which another run with the same --out does not compute again, and from all that are
there table.md, study.png, and the samples of the widest networks.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdistill.core.atomic_files import write_json
from fdistill.core.random import generator_for
from fdistill.data import Chequerboard, Digits, GaussianMixtureData, GenerativeDataModule
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.report.figure_file import INK, new_figure, save_figure, styled
from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.report.rows import compare
from fdistill.evaluation.samples import Samples, read_samples
from fdistill.evaluation.see_saw import LinearDenoiser, see_saw
from fdistill.evaluation.teacher_diagnosis import finer_grid
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import MLP, Network, SmallUNet, TwoExperts
from fdistill.objectives.denoising import weighted_denoising_loss
from fdistill.sampling import GDDIM, Heun, PredictorCorrector, Sampler, generate
from fdistill.sampling.grids import PathGrid
from fdistill.theory.loss_weights import ConstantEps
from fdistill.theory.noise_levels import LogUniform, UniformTime
from fdistill.theory.paths import VPLinear
from fdistill.theory.preconditioning import EDM, EpsPrediction, Preconditioning

PATH = VPLinear()
TRAINED = UniformTime(PATH, 0.001, 1.0)
COARSE = PathGrid(PATH, 50, 150.0, 0.01).levels()
FINE = finer_grid(COARSE, 99)
NETWORKS = {"plain": ["ODE", "SDE", "predictor-corrector"], "two experts": ["ODE"], "skip": ["ODE"], "EDM": ["ODE"]}
COLOURS = {
    "real": INK,
    "plain, ODE": "#b3402a",
    "plain, SDE": "#2563a8",
    "plain, predictor-corrector": "#7a9cc6",
    "two experts, ODE": "#3c8d5a",
    "skip, ODE": "#c28f2c",
    "EDM, ODE": "#7b4fa3",
}
SHOWN = {2: 800, 4: 50}  # samples kept of each row for the picture, by the number of dimensions
NUMBERS = {
    "TID": "tid",
    "anchored TID": "anchored_tid",
    "neighbours / real": "count_ratio",
    "recall": "recall",
    "precision": "precision",
    "Vendi / real": "vendi_ratio",
    "Fréchet distance": "frechet_distance",
    "excess at high noise": "excess",
}
DRAWN = ("anchored TID", "recall", "Fréchet distance", "excess at high noise")


class Setting(NamedTuple):
    """One kind of data, and how its networks are trained."""

    data: GenerativeDataModule
    widths: tuple[int, ...]
    turns: int
    batch_size: int
    lr: float
    n: int  # samples of every row

    def samplers(self) -> dict[str, tuple[Sampler, Tensor]]:
        """Each with its grid; all of 99 evaluations."""
        corrector = PredictorCorrector(norms="expected" if len(self.data.sample_shape) == 1 else "sample")
        return {"ODE": (Heun(), COARSE), "SDE": (GDDIM(1.0), FINE), "predictor-corrector": (corrector, COARSE)}

    def network(self, width: int, skip: bool = False) -> Network:
        if len(self.data.sample_shape) == 1:
            return MLP(2, width, frequencies=32, skip=skip)
        return SmallUNet(widths=(width, 2 * width), skip=skip)


SETTINGS = {
    "chequerboard": lambda: Setting(Chequerboard(4, 20_000, 2000), (32, 64, 128), 2500, 128, 3e-3, 1000),
    "grid": lambda: Setting(
        GaussianMixtureData("grid", num_samples=20_000, num_held_out=2000), (32, 64, 128), 2500, 128, 3e-3, 1000
    ),
    "digits": lambda: Setting(Digits(), (8, 16), 1500, 64, 2e-3, 500),
}


def denoiser_of(kind: str, setting: Setting, width: int, seed: int) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sigma_data = setting.data.data_std()
        preconditioning: Preconditioning = EDM(sigma_data) if kind == "EDM" else EpsPrediction(PATH)
        network = setting.network(width, skip=kind == "skip")
        if kind == "two experts":
            split = preconditioning.coefficients(torch.tensor([sigma_data])).noise
            network = TwoExperts(network, setting.network(width), float(split))
    return Denoiser(network, preconditioning)


def train(denoiser: Denoiser, setting: Setting, turns: int, ema: float, seed: int) -> tuple[Denoiser, float]:
    """The trained denoiser, averaged where ema > 0, and the seconds of processor time."""
    average, x, weight = copy.deepcopy(denoiser).eval(), setting.data.train_samples.copied().x, ConstantEps()
    optimiser, generator = torch.optim.Adam(denoiser.parameters(), setting.lr), generator_for(seed, 1)
    started = time.process_time()
    for turn in range(turns):
        x_0 = x[torch.randint(len(x), (setting.batch_size,), generator=generator)]
        sigma = TRAINED.sample(len(x_0), generator)
        noise = torch.randn(x_0.shape, generator=generator)
        denoised = denoiser(x_0 + sigma.reshape(-1, *[1] * (x_0.ndim - 1)) * noise, sigma)
        loss = weighted_denoising_loss(denoised, x_0, sigma, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            decay = min(ema, (1 + turn) / (10 + turn))
            torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)
    return average, time.process_time() - started


class Judge:
    """The held-out samples of a setting, and what all rows are measured with."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, data = setting, setting.data
        self.extractor: FeatureExtractor = default_extractor(data.sample_shape, data.num_classes)
        self.extractor.prepare(data.train_samples.copied().x, data.train_samples.labels, data.num_classes, seed)
        self.held_out = data.held_out_samples.copied().x[: setting.n]
        self.reference = self.read(self.held_out)
        self.linear = LinearDenoiser.fit(data.train_samples.copied().x, generator_for(seed, 2))

    def read(self, x: Tensor) -> Samples:
        return read_samples(self.setting.data, self.extractor, "samples", x, None)

    def row(self, x: Tensor) -> dict[str, float | None]:
        found = compare(self.read(x), self.reference)
        return {name: found[name] for name in NUMBERS.values() if name in found}

    def curve(self, denoiser: Denoiser) -> dict[str, list[float]]:
        found = see_saw(denoiser, self.linear, self.held_out, None, LogUniform(0.01, 150.0), generator_for(3), 10)
        return {"sigma": found.sigma.tolist(), "excess": found.excess.tolist()}


def cell(kind: str, judge: Judge, width: int, seed: int, turns: int, ema: float) -> dict[str, Any]:
    """What one network gives: its rows, its see-saw, some samples."""
    setting = judge.setting
    fresh = denoiser_of(kind, setting, width, seed)
    parameters = sum(parameter.numel() for parameter in fresh.parameters())
    denoiser, seconds = train(fresh, setting, turns, ema, seed)
    started, rows, samples = time.process_time(), {}, {}
    latents = torch.randn(setting.n, *setting.data.sample_shape, generator=generator_for(seed, 4))
    for name in NETWORKS[kind]:
        sampler, grid = setting.samplers()[name]
        x = generate(sampler, denoiser, latents, grid)
        rows[name], samples[name] = judge.row(x), kept(x)
    facts = {"parameters": parameters, "train_seconds": seconds, "rest_seconds": time.process_time() - started}
    return {"rows": rows, "curve": judge.curve(denoiser), "samples": samples, **facts}


def kept(x: Tensor) -> list[Any]:
    return [[round(value, 3) for value in one] for one in x[: SHOWN[x.ndim]].flatten(1).tolist()]


def real_cell(judge: Judge, seed: int) -> dict[str, Any]:
    x = judge.setting.data.train_samples.copied().x
    x = x[torch.randperm(len(x), generator=generator_for(seed, 5))[: judge.setting.n]]
    return {"rows": {"": judge.row(x)}, "curve": None, "samples": {"": kept(x)}, "parameters": 0}


def high_noise(found: dict[str, Any], data_std: float) -> float | None:
    """Mean excess of the bins above the data's deviation."""
    if found["curve"] is None:
        return None
    bins = zip(found["curve"]["sigma"], found["curve"]["excess"], strict=True)
    return statistics.fmean(excess for sigma, excess in bins if sigma > data_std)


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells of one kind of data, from their files where these are there; one entry a row of the study."""
    setting = SETTINGS[name]()
    turns, widths = options.turns or setting.turns, options.widths or setting.widths
    judge, entries = None, []
    cells = [("real", 0, seed) for seed in options.seeds]
    cells += [(kind, width, seed) for seed in options.seeds for width in widths for kind in NETWORKS]
    for kind, width, seed in cells:
        made_with = f"{name}-{kind.replace(' ', '_')}-width{width}-seed{seed}-turns{turns}-ema{options.ema:g}"
        file = options.out / "cells" / f"{made_with}.json"
        if not file.exists():
            judge = judge or Judge(setting, 0)
            real = kind == "real"
            found = real_cell(judge, seed) if real else cell(kind, judge, width, seed, turns, options.ema)
            write_json(file, found)
            print(f"{made_with}: {found.get('train_seconds', 0):.0f} s", flush=True)
        found = json.loads(file.read_text(encoding="utf-8"))
        for sampler, row in found["rows"].items():
            numbers = row | {"excess": high_noise(found, setting.data.data_std())}
            where = {"data": name, "width": width, "seed": seed, "row": f"{kind}, {sampler}" if sampler else kind}
            entries.append(
                {**where, **numbers, "parameters": found["parameters"], "samples": found["samples"][sampler]}
            )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Median over the seeds, and the range where there are several."""
    lines = ["| data | width | row | weights | " + " | ".join(NUMBERS) + " |", "|" + "---|" * (4 + len(NUMBERS))]
    for data, width, row in dict.fromkeys((e["data"], e["width"], e["row"]) for e in entries):
        mine = [e for e in entries if (e["data"], e["width"], e["row"]) == (data, width, row)]
        cells = [words([e[key] for e in mine]) for key in NUMBERS.values()]
        size = f"{mine[0]['parameters']:,}" if width else ""
        lines.append(f"| {data} | {width or ''} | {row} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def words(values: list[float | None]) -> str:
    if None in values:
        return ""
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


@styled
def study_figure(entries: list[dict[str, Any]], path: Path) -> Path:
    """One column a kind of data, one panel a number; over the width the median of the seeds, and their range."""
    kinds = list(dict.fromkeys(e["data"] for e in entries))
    figure = new_figure(0.8 + 3.6 * len(kinds), 2.4 * len(DRAWN) + 0.7)
    panels = figure.subplots(len(DRAWN), len(kinds), squeeze=False, sharex="col")
    for column, kind in enumerate(kinds):
        widths = sorted({e["width"] for e in entries if e["data"] == kind} - {0})
        for name, axes in zip(DRAWN, panels[:, column], strict=True):
            for i, (row, colour) in enumerate(COLOURS.items()):
                found = [e for e in entries if e["data"] == kind and e["row"] == row and e[NUMBERS[name]] is not None]
                if row == "real" and found:
                    axes.axhline(
                        statistics.median(e[NUMBERS[name]] for e in found), ls="--", lw=1, color=colour, label=row
                    )
                    continue
                there = [[e[NUMBERS[name]] for e in found if e["width"] == width] for width in widths]
                places = [place + 0.09 * (i - 3.5) for place, values in enumerate(there) if values]
                middles = [statistics.median(values) for values in there if values]
                axes.plot(places, middles, "o-", ms=3.5, lw=0.7, color=colour, label=row)
                axes.vlines(places, [min(v) for v in there if v], [max(v) for v in there if v], color=colour, lw=1.4)
            if name == "excess at high noise":
                axes.set_yscale("symlog", linthresh=0.1)
            axes.set_title(f"{kind}: {name}")
            axes.set_xticks(range(len(widths)), widths)
        panels[-1, column].set_xlabel("width")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(figure, path)


def samples_figure(entries: list[dict[str, Any]], shape: tuple[int, ...], path: Path) -> Path:
    """Samples of every row of the first seed, of the widest network."""
    seed, width = entries[0]["seed"], max(e["width"] for e in entries)
    first = [e for e in entries if e["seed"] == seed and e["width"] in (0, width)]
    return sample_grid_figure({e["row"]: torch.tensor(e["samples"]).reshape(-1, *shape) for e in first}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--widths", nargs="+", type=int, help="instead of the data's own; even, of images a multiple of 4"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--turns", type=int, help="instead of the data's own")
    parser.add_argument(
        "--ema", type=float, default=0.0, help="decay of an average of the weights; 0 for the last ones"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    entries = []
    for name in options.data:
        found = run(name, options)
        shape = SETTINGS[name]().data.sample_shape
        samples_figure(found, shape, options.out / f"samples-{name}.png")
        entries += found
    study_figure(entries, options.out / "study.png")
    text = table(entries)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
