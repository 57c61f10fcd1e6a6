"""Two moving averages of a student that is an adapter: of its factors A and B, as ours is, and of W + s B A.

    make text-quickstart && python tools/average_of_factors.py --out runs/average-of-factors

A run of configs/text_quickstart/student.yaml with roles on one base; beside the module's own average one of the merged
weights is kept, at the same decay. Says how far the two lie from each other and from the last weights, and evaluates
both. Writes averages.json.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch

from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.evaluation.caption_evaluation import evaluate_captions
from fdistill.io.load import load_model
from fdistill.models.adapters import adapter_layers, merged
from fdistill.models.denoiser import Denoiser
from fdistill.training.averaging.ema import EMA

CONFIGS = ("configs/trainer.yaml", "configs/text_quickstart/student.yaml")


class AverageOfProducts(L.Callback):
    """Keeps the average of the merged weights of a student in full turns."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.ema, self.updates = EMA(merged(pl_module.student), pl_module.ema.decay), pl_module.updates

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if pl_module.updates > self.updates:
            self.ema.update(merged(pl_module.student), self.updates)
            self.updates = pl_module.updates


def distance(one: Denoiser, other: Denoiser, base: Denoiser, layers: set[str]) -> float:
    """|one - other| / |other - base| over the weights of some layers."""
    a, b, w = ({n: dict(d.named_modules())[n].weight for n in layers} for d in (one, other, base))
    apart = sum(float((a[n] - b[n]).double().square().sum()) for n in layers)
    return (apart / sum(float((b[n] - w[n]).double().square().sum()) for n in layers)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="of fdistill fit, after --")
    given = parser.parse_args()
    roles = ["--model.roles=SharedBase", f"--model.roles.rank={given.rank}", "--model.roles.targets=all"]
    run = [f"--trainer.default_root_dir={given.out / 'run'}", f"--seed_everything={given.seed}"]
    configs = [part for path in CONFIGS for part in ("--config", path)]
    cli = run_trainer([*configs, *roles, *run, *given.options], run=False)
    module, products = cli.model, AverageOfProducts()
    cli.trainer.callbacks.append(products)
    cli.trainer.fit(module, datamodule=cli.datamodule)

    teacher = load_model(module.teacher_source)
    factors, last = merged(module.ema.average), merged(module.student)
    layers = set(adapter_layers(module.student))
    found: dict[str, Any] = {
        "relative distance": distance(factors, products.ema.average, module.teacher, layers),
        "of the last weights": distance(last, products.ema.average, module.teacher, layers),
    }
    for name, average in (("factors", factors), ("products", products.ema.average)):
        model = module.generative_model()
        model.denoiser = average
        with torch.no_grad():
            report = evaluate_captions(model, teacher, cli.datamodule, seed=given.seed).report
        found[name] = {key: report["captions"][key]["student"] for key in report["captions"]}
        found[name]["beside teacher"] = report["student_beside_teacher"]
    write_json(given.out / "averages.json", found)
    for name, value in found.items():
        print(name, value)


if __name__ == "__main__":
    main()
