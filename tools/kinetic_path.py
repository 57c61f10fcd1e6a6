"""A teacher's path of least kinetic energy: estimated, compared, written as YAML, drawn, and sampled on.

    python tools/kinetic_path.py checkpoints/digits-teacher --out runs/kinetic_path --steps 3 5 10 20

Lambda(theta) comes from the teacher's denoising loss on held-out samples. Writes into --out: path.yaml, for the path of
a preconditioning, of noise levels or of a grid; grid.yaml, for `fdistill sample --grid` and a teacher's grid; table.md,
of energies and, with --steps, of samples made by Euler and Heun on three grids of as many steps from the same latents;
results.json; and picture.png. A distance to the ODE is that to the samples of 100 Heun steps on EDM's grid, in units of
the data's root mean square.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from kinetic_energy import Shares, estimate_shares, kinetic_energy
from matplotlib.axes import Axes
from torch import Tensor

from fdistill.cli.commands.yaml_section import data_of_file
from fdistill.core.atomic_files import atomic_write, write_json
from fdistill.core.random import fold_seed, generator_for
from fdistill.data import GenerativeDataModule, remembered_data
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.metrics import frechet_distance
from fdistill.evaluation.report.figure_file import BLUE, PALE_BLUE, new_figure, save_figure, styled
from fdistill.io.load import load_model
from fdistill.sampling import Euler, Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import KarrasGrid, PathGrid, SamplingGrid
from fdistill.theory.paths import KineticOptimal, RectifiedFlow, TrigFlow, VPLinear
from fdistill.theory.paths import Path as GaussianPath

OPTIMAL, FLOW, COSINE, LINEAR, KARRAS = "kinetic optimal", "rectified flow", "cosine", "VP linear", "Karras"
COLOURS = {OPTIMAL: BLUE, FLOW: "#b3402a", COSINE: "#6b7280", KARRAS: PALE_BLUE}
SAMPLERS = {"Euler": Euler(), "Heun": Heun()}
REFERENCE_STEPS = 100
DIGITS = 6  # of the numbers in YAML; everything here is made of the rounded ones


class Estimate(NamedTuple):
    """Means over draws of the noise.

    shares: with the standard errors of one draw, since the samples stay the same.
    path: of them.
    """

    shares: Shares
    path: KineticOptimal


def estimate(model: GenerativeModel, data: GenerativeDataModule, options: argparse.Namespace) -> Estimate:
    held_out = data.held_out_samples.copied()
    x_0 = held_out.x.to(model.device)
    labels = held_out.classes.to(model.device) if model.num_classes else None
    sigma_data = round(float(data.train_samples.copied().x.double().square().mean().sqrt()), DIGITS)
    draws = [
        estimate_shares(
            model.denoiser,
            x_0,
            labels,
            sigma_data,
            generator_for(options.seed, draw),
            options.angles,
            options.sigma_min,
            options.sigma_max,
        )
        for draw in range(options.draws)
    ]
    shares, errors = (torch.stack([draw[i] for draw in draws]).mean(dim=0) for i in (1, 2))
    angles, clipped = (
        [round(value, DIGITS) for value in values.tolist()] for values in (draws[0].angles, shares.clamp(0, 1))
    )
    return Estimate(Shares(draws[0].angles, shares, errors), KineticOptimal(angles, clipped, sigma_data))


def energies(path: KineticOptimal, sigma_min: float) -> dict[str, float]:
    """Per entry, of paths of data of unit power, from sigma_min to pure noise or the end of the path."""
    table = path.spec()["init_args"]
    angles, shares = table["angles"], table["shares"]
    least = torch.tensor(sigma_min / path.sigma_data, dtype=torch.float64)
    paths: dict[str, GaussianPath] = {
        OPTIMAL: KineticOptimal(angles, shares),
        FLOW: RectifiedFlow(),
        COSINE: TrigFlow(),
        LINEAR: VPLinear(),
    }
    return {
        name: kinetic_energy(each, angles, shares, 1.0, t_min=float(each.time(least))) for name, each in paths.items()
    }


def grids(path: KineticOptimal, num_steps: int, sigma_min: float, sigma_max: float) -> dict[str, SamplingGrid]:
    """Of as many steps; rectified flow is that of data of unit power."""
    flow = KineticOptimal([0.0], [1.0], path.sigma_data)
    return {
        OPTIMAL: PathGrid(path, num_steps, sigma_max),
        FLOW: PathGrid(flow, num_steps, sigma_max),
        KARRAS: KarrasGrid(num_steps, sigma_min, sigma_max),
    }


def sampled(
    model: GenerativeModel, data: GenerativeDataModule, path: KineticOptimal, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for every sampler, number of steps and grid."""
    train, held_out = data.train_samples.copied(), data.held_out_samples.copied()
    extractor = default_extractor(data.sample_shape, data.num_classes)
    extractor.prepare(train.x, train.classes if data.num_classes > 1 else None, data.num_classes, options.seed)
    real = extractor.extract(held_out.x)
    labels = held_out.classes if model.num_classes else None
    latents = [model.noise(len(held_out.x), fold_seed(options.seed, i) % 2**32) for i in range(options.repeats)]

    def samples(sampler: Any, grid: SamplingGrid, z: Tensor) -> Tensor:
        made = GenerativeModel.teacher(
            model.denoiser, 1, 1.0, 2.0, guidance=model.guidance, sampler=sampler, sigmas=grid.levels()
        )
        return made.sample(z, labels)

    fine = KarrasGrid(REFERENCE_STEPS, options.sigma_min, options.sigma_max)
    exact = [samples(Heun(), fine, z) for z in latents]
    rows = [row("Heun", REFERENCE_STEPS, KARRAS, 2 * REFERENCE_STEPS - 1, exact, exact, real, extractor, path)]
    for name, sampler in SAMPLERS.items():
        for num_steps in options.steps:
            for kind, grid in grids(path, num_steps, options.sigma_min, options.sigma_max).items():
                made = [samples(sampler, grid, z) for z in latents]
                spent = sampler.evaluations(grid.levels())
                rows.append(row(name, num_steps, kind, spent, made, exact, real, extractor, path))
                print(sentence(rows[-1]), flush=True)
    return rows


def row(
    sampler: str,
    num_steps: int,
    grid: str,
    evaluations: int,
    made: list[Tensor],
    exact: list[Tensor],
    real: Tensor,
    extractor: Any,
    path: KineticOptimal,
) -> dict[str, Any]:
    distances = [float(frechet_distance(extractor.extract(x), real)) for x in made]
    off = [float((x - y).square().mean().sqrt()) / path.sigma_data for x, y in zip(made, exact, strict=True)]
    return {
        "sampler": sampler,
        "steps": num_steps,
        "grid": grid,
        "evaluations": evaluations,
        "frechet_distance": statistics.fmean(distances),
        "frechet_distance_range": [min(distances), max(distances)],
        "distance_to_ode": statistics.fmean(off),
    }


def sentence(found: dict[str, Any]) -> str:
    low, high = found["frechet_distance_range"]
    return (
        f"{found['sampler']}, {found['steps']} steps, {found['grid']}: Fréchet distance "
        f"{found['frechet_distance']:.3f} ({low:.3f} to {high:.3f}), to the ODE {found['distance_to_ode']:.4f}"
    )


def table(costs: dict[str, float], rows: list[dict[str, Any]]) -> str:
    lines = ["| path | kinetic energy per entry |", "|---|---|"]
    lines += [f"| {name} | {cost:.3f} |" for name, cost in costs.items()]
    if rows:
        lines += ["", "| sampler | steps | evaluations | grid | Fréchet distance | to the ODE |", "|" + "---|" * 6]
    for found in rows:
        low, high = found["frechet_distance_range"]
        lines.append(
            f"| {found['sampler']} | {found['steps']} | {found['evaluations']} | {found['grid']} | "
            f"{found['frechet_distance']:.3f} ({low:.3f} to {high:.3f}) | {found['distance_to_ode']:.4f} |"
        )
    return "\n".join(lines)


@styled
def picture(found: Estimate, num_steps: int, options: argparse.Namespace) -> None:
    figure = new_figure(12.6, 4.2)
    told, plane, levels = figure.subplots(1, 3)
    angles = torch.linspace(0, math.pi / 2, 400, dtype=torch.float64)
    _told(told, found, angles)
    t = torch.linspace(0, 1, 400, dtype=torch.float64)
    unit = KineticOptimal(found.path.spec()["init_args"]["angles"], found.path.spec()["init_args"]["shares"])
    ticks = torch.linspace(0, 1, 11, dtype=torch.float64)
    for name, path in ((OPTIMAL, unit), (FLOW, RectifiedFlow()), (COSINE, TrigFlow())):
        plane.plot(path.sigma(t), path.alpha(t), color=COLOURS[name], lw=1.6, label=name)
        plane.plot(path.sigma(ticks), path.alpha(ticks), "o", color=COLOURS[name], ms=3.5)
    plane.set_aspect("equal")
    _labels(plane, "noise, of data of unit power", "signal", "Paths; dots: a tenth of the time each")
    for name, grid in grids(found.path, num_steps, options.sigma_min, options.sigma_max).items():
        sigmas = grid.levels()
        levels.plot(range(len(sigmas) - 1), sigmas[:-1], "o-", color=COLOURS[name], lw=1.4, ms=4, label=name)
    levels.set_yscale("log")
    _labels(levels, "step", "noise level sigma", f"Levels above 0 of {num_steps} steps")
    save_figure(figure, options.out / "picture.png")


def _told(axes: Axes, found: Estimate, angles: Tensor) -> None:
    error = 2 * found.shares.standard_errors
    axes.errorbar(
        found.shares.angles, found.shares.shares, error, fmt="o", ms=3, color=PALE_BLUE, lw=1, label="measured"
    )
    axes.plot(angles, found.path.share(angles), color=BLUE, lw=1.4, label="clipped")
    _labels(axes, "theta, from noise to data", "Lambda", "Share of the velocity that is told; bars: 2 s.e.")


def _labels(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a teacher: a .ckpt file or a folder of fdistill export")
    parser.add_argument("--data", type=Path, help="YAML file with a data section; the teacher's own where not given")
    parser.add_argument("--angles", type=int, default=33)
    parser.add_argument("--draws", type=int, default=8, help="of noise for every held-out sample")
    parser.add_argument("--sigma-min", type=float, default=0.002)
    parser.add_argument("--sigma-max", type=float, default=80.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[], help="numbers of sampling steps to compare at")
    parser.add_argument("--repeats", type=int, default=4, help="sets of as many samples as are held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.checkpoint)
    data = remembered_data(model.facts) if options.data is None else data_of_file(str(options.data))
    found = estimate(model, data, options)
    costs = energies(found.path, options.sigma_min)
    print(table(costs, []), flush=True)
    num_steps = max(options.steps, default=10)
    grid = PathGrid(found.path, num_steps, options.sigma_max)
    for name, part in (("path", found.path), ("grid", grid)):
        atomic_write(
            options.out / f"{name}.yaml", yaml.safe_dump(part.spec(), sort_keys=False, default_flow_style=None)
        )
    rows = sampled(model, data, found.path, options) if options.steps else []
    facts = {"sigma_data": found.path.sigma_data, "seed": options.seed, "draws": options.draws, "energies": costs}
    measured = {name: values.tolist() for name, values in found.shares._asdict().items()}
    write_json(options.out / "results.json", {**facts, **measured, "rows": rows})
    atomic_write(options.out / "table.md", table(costs, rows) + "\n")
    picture(found, num_steps, options)
    print(table(costs, rows))


if __name__ == "__main__":
    main()
