"""Samplers of one teacher at equal evaluations: Fréchet distance and recall, every row from the same latents.

    python tools/benchmark_samplers.py checkpoints/digits-teacher --out runs/benchmark_samplers

A sampler gets the most steps of EDM's grid that stay within the evaluations. Numbers are means over --repeats sets of
as many samples as are held out, in the features of one classifier. Writes results.json and table.md into --out.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.cli.commands.yaml_section import data_of_file
from fdistill.core.atomic_files import atomic_write, write_json
from fdistill.core.random import fold_seed
from fdistill.data import remembered_data
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.metrics import frechet_distance, precision_recall
from fdistill.io.load import load_model
from fdistill.sampling import GDDIM, Euler, Heun, PredictorCorrector, Renoising, Restart, Sampler, generate
from fdistill.sampling.generator import GenerativeModel

SAMPLERS: dict[str, Sampler] = {
    "Euler = DDIM": Euler(),
    "Heun": Heun(),
    "Heun, churn 10": Heun(churn=10.0),
    "GDDIM, eta .5": GDDIM(0.5),
    "GDDIM, eta 1 = DDPM": GDDIM(1.0),
    "GDDIM, eta 2": GDDIM(2.0),
    "Renoising": Renoising(),
    "PredictorCorrector": PredictorCorrector(),
    "PredictorCorrector, expected norms": PredictorCorrector(norms="expected"),
    "Restart, .3 to 2, 3 steps": Restart(0.3, 2.0, 1, 3),
}


def grid_within(sampler: Sampler, model: GenerativeModel, evaluations: int) -> Tensor | None:
    """EDM's grid of the most steps that cost no more; None where one step costs more, or the sampler refuses."""
    best = None
    for num_steps in range(2, evaluations + 1):
        grid = model.edm_grid(num_steps)
        try:
            cost = sampler.evaluations(grid)
        except ValueError:
            continue
        best = grid if cost <= evaluations else best
    return best


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    model = load_model(options.checkpoint)
    data = remembered_data(model.facts) if options.data is None else data_of_file(str(options.data))
    extractor = default_extractor(data.sample_shape, data.num_classes)
    train, held_out = data.train_samples.copied(), data.held_out_samples.copied()
    extractor.prepare(train.x, train.classes if data.num_classes > 1 else None, data.num_classes, options.seed)
    real, labels = extractor.extract(held_out.x), held_out.classes if model.num_classes else None
    latents = [model.noise(len(held_out.x), fold_seed(options.seed, i) % 2**32) for i in range(options.repeats)]
    rows = []
    for name, sampler in SAMPLERS.items():
        for budget in options.evaluations:
            grid = grid_within(sampler, model, budget)
            if grid is None:
                continue
            made = [extractor.extract(generate(sampler, model.denoiser, z, grid, labels)) for z in latents]
            distances = [float(frechet_distance(x, real)) for x in made]
            recalls = [float(precision_recall(x, real)[1]) for x in made]
            facts = {"sampler": name, "evaluations": budget, "steps": len(grid) - 1}
            facts |= {"frechet_distance": statistics.fmean(distances), "recall": statistics.fmean(recalls)}
            rows.append(facts | {"range": [min(distances), max(distances)]})
            print(facts, flush=True)
    return rows


def table(rows: list[dict[str, Any]], evaluations: list[int]) -> str:
    """A row a sampler: distance, and recall behind it."""
    lines = ["| Fréchet distance, recall | " + " | ".join(map(str, evaluations)) + " |"]
    lines.append("|---" * (len(evaluations) + 1) + "|")
    for name in SAMPLERS:
        found = {row["evaluations"]: row for row in rows if row["sampler"] == name}
        cells = [
            f"{found[n]['frechet_distance']:#.3g}, {found[n]['recall']:.2f}" if n in found else "" for n in evaluations
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a teacher: a .ckpt file or a folder of fdistill export")
    parser.add_argument("--data", type=Path, help="YAML file with a data section; the teacher's own where not given")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 9, 19, 35, 99])
    parser.add_argument("--repeats", type=int, default=4, help="sets of as many samples as are held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    write_json(options.out / "results.json", {"seed": options.seed, "repeats": options.repeats, "rows": rows})
    text = table(rows, options.evaluations)
    atomic_write(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
