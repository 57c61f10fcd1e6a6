"""What keeps the diversity of a student of four steps: its first step anchored (DP-DMD), or made by the teacher.

    python tools/benchmark_first_step.py DMD2 --seed 0 --out runs/benchmark_first_step
    python tools/benchmark_first_step.py --table runs/benchmark_first_step

Conditional digits 8 x 8, by configs/benchmarks/digits_four_steps.yaml: the ten classes stand for prompts. Of the
student, of the same student with the teacher's first step, and of the teacher: precision and recall (k = 3) of as many
samples as are held out, at most 500; their Vendi score; the Vendi score of 16 seeds of a class over the teacher's
(`SeedProbe`); and the share of samples in which a classifier sees the class that was asked for. Writes one JSON a run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from quiet_trainer import quiet_trainer

from fdistill.core.atomic_files import write_json
from fdistill.core.yaml_files import read_yaml
from fdistill.data import Digits
from fdistill.evaluation.features import FeatureExtractor
from fdistill.evaluation.metrics import precision_recall, vendi_score
from fdistill.evaluation.seed_diversity import Found, SeedProbe, default_spaces
from fdistill.io.load import load_model
from fdistill.objectives import DMD2, DiversityPreserving, FDistill, Objective
from fdistill.objectives.base import required
from fdistill.sampling import Euler
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.divergences import JensenShannon
from fdistill.theory.noise_levels import LogNormal
from fdistill.training import DistillationModule

CONFIG = Path(__file__).parents[1] / "configs" / "benchmarks" / "digits_four_steps.yaml"
ADVERSARIAL, TEACHER_STEPS, DRAWS, N = 0.1, 30, 2, 500
OBJECTIVES: dict[str, Objective] = {
    "DMD2": DMD2(ADVERSARIAL),
    "f-distill": FDistill(JensenShannon(), ADVERSARIAL),
    "DP-DMD": DiversityPreserving(DMD2(ADVERSARIAL), 0.05, 5),
    "DP-DMD, weight 1": DiversityPreserving(DMD2(ADVERSARIAL), 1.0, 5),
}


def trained(objective: Objective, seed: int, turns: int) -> tuple[DistillationModule, GenerativeModel]:
    """The module after its turns, and its teacher on the grid of the anchor."""
    settings = read_yaml(CONFIG)["model"]["init_args"]
    own = load_model(settings.pop("teacher"))
    teacher = GenerativeModel.teacher(own.denoiser, TEACHER_STEPS, 0.002, settings["sigma_init"], sampler=Euler())
    for name in ("student_optimizer", "fake_score_optimizer"):
        rates = settings[name]["init_args"]
        settings[name] = lambda parameters, rates=rates: torch.optim.AdamW(parameters, **rates)
    settings["noise_levels"] = LogNormal(**settings["noise_levels"]["init_args"])
    module = DistillationModule(teacher, objective, seed=seed, **settings)
    data = Digits(read_yaml(CONFIG)["data"]["init_args"]["batch_size"], seed=seed)
    quiet_trainer(accelerator="cpu", max_steps=turns).fit(module, datamodule=data)
    return module, teacher


def measured(model: GenerativeModel, probe: SeedProbe, judge: FeatureExtractor, seeds: list[Found]) -> dict[str, float]:
    """The numbers of a model, means over draws; `seeds` are the teacher's of the same draws."""
    held_out = Digits().held_out_samples.copied().x[:N]
    real, found = judge.extract(held_out), []
    for draw in range(DRAWS):
        labels = torch.arange(len(held_out)) % 10
        rows = judge.extract(model.sample(model.noise(len(held_out), 100 + draw), labels))
        own = probe.measure(probe.pictures(model, draw))
        ratios = {
            f"vendi_ratio_{space}": float((own[space].vendi.log() - seeds[draw][space].vendi.log()).mean().exp())
            for space in probe.spaces
        }
        asked = float((required(judge.classify(rows)) == labels).double().mean())
        precision, recall = map(float, precision_recall(rows, real))
        vendi = float(vendi_score(rows, centre=real.mean(0)))
        found.append({"precision": precision, "recall": recall, "vendi": vendi, "asked_class": asked} | ratios)
    return {name: statistics.fmean(row[name] for row in found) for name in found[0]}


def table(folder: Path) -> str:
    """Medians over seeds, and their range."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        for name, numbers in run["rows"].items():
            rows.setdefault(name if name == "teacher" else f"{run['objective']}{name}", []).append(numbers)
    names = list(runs[0]["rows"]["teacher"])
    lines = [f"| | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row, found in rows.items():
        cells = []
        for name in names:
            values = sorted(numbers[name] for numbers in found)
            span = "" if len(values) == 1 else f" ({values[0]:.3f} to {values[-1]:.3f})"
            cells.append(f"{statistics.median(values):.3f}{span}")
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="*", metavar="OBJECTIVE", help=", ".join(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=read_yaml(CONFIG)["trainer"]["max_steps"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_first_step"))
    parser.add_argument("--table", type=Path, help="print the table of a folder of runs, and make none")
    options = parser.parse_args()
    if options.table is not None:
        print(table(options.table))
        return
    data = Digits()
    probe = SeedProbe(data.named_conditions(10), default_spaces(data.sample_shape, 10))
    judge = probe.spaces["features"]
    for extractor in probe.spaces.values():
        extractor.keep_learned()
    probe.prepare(data.train_samples, 10)
    seeds: list[Found] = []
    for name in options.objectives:
        started = time.process_time()
        module, teacher = trained(OBJECTIVES[name], options.seed, options.turns)
        seconds, student = time.process_time() - started, module.generative_model()
        seeds = seeds or [probe.measure(probe.pictures(teacher, draw)) for draw in range(DRAWS)]
        models = {"": student, ", first step of the teacher": with_first_step_of(student, teacher), "teacher": teacher}
        rows: dict[str, Any] = {row: measured(model, probe, judge, seeds) for row, model in models.items()}
        facts = {"objective": name, "seed": options.seed, "turns": options.turns, "cpu_seconds": seconds}
        write_json(options.out / f"{name}-{options.seed}.json", facts | {"torch": torch.__version__, "rows": rows})
        print(name, options.seed, json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
