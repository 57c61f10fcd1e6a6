"""Teach a one-step student of captions a style, and see whether it keeps its captions: bold digits on the text problem.

    fdistill fit --config configs/trainer.yaml --config configs/text_quickstart/student.yaml \
        --model.roles SharedBase --model.roles.rank 16 --model.roles.targets all --trainer.default_root_dir runs/adapter
    python tools/style_on_text.py runs/adapter/checkpoints/last.ckpt --out runs/style

As configs/recipes/style_lora.yaml: the student goes on from its LoRA file, distilled by reverse KL from its teacher,
which draws thin digits, while the images of the adversarial term are bold. Boldness is the mean ink of pictures, 0 as
of real images, 1 as of bold ones. Writes style.json and before_after.png (rows of eight: before, after).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdistill.cli.commands.export import export
from fdistill.cli.fit import run_trainer
from fdistill.core.atomic_files import write_json
from fdistill.data import CaptionedDigits
from fdistill.data.batches import InMemorySplit
from fdistill.data.captioned_digits import COLOURS, caption_parts, captions
from fdistill.evaluation.caption_evaluation import evaluate_captions
from fdistill.io.load import load_model
from fdistill.io.stock_pipeline import prompt_condition
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.pictures import show

SHOWN = 32


def ink(pictures: Tensor, numbers: Tensor) -> Tensor:
    """Of pictures [n, 3, 8, 8] in [-1, 1] how far each pixel is from the ground to the digit's colour, [n, 8, 8]."""
    palette = torch.tensor(list(COLOURS.values()))
    colour, ground = (palette[part][:, :, None, None] for part in caption_parts()[numbers, 1:].unbind(1))
    way = colour - ground
    return (((pictures + 1) / 2 - ground) * way).sum(1) / way.square().sum(1)


class BoldCaptionedDigits(CaptionedDigits):
    """The same digits with all ink raised to the power .3: grey becomes nearly full."""

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        splits = super().load_splits()
        palette = torch.tensor(list(COLOURS.values()))
        for split in splits:
            colour, ground = (palette[p][:, :, None, None] for p in caption_parts()[split.labels, 1:].unbind(1))
            bold = ink(split.x.float(), split.labels).clamp(0, 1)[:, None] ** 0.3
            split.x = (2 * (ground + bold * (colour - ground)) - 1).to(split.x.dtype)
        return splits


def measured(model: GenerativeModel, data: CaptionedDigits, thin: float, bold: float) -> tuple[dict[str, Any], Tensor]:
    """Accuracy and spread for shown and new captions, boldness, and pictures of some captions."""
    report = evaluate_captions(model, None, data).report["captions"]
    numbers = torch.arange(data.num_classes)
    pictures = model.decode(
        model.sample(model.noise(len(numbers), 0), prompt_condition(model, captions(), len(numbers)))
    )
    found: dict[str, Any] = {
        key: {n: rows["student"][n] for n in ("accuracy", "spread")} for key, rows in report.items()
    }
    found["boldness"] = (float(ink(pictures, numbers).mean()) - thin) / (bold - thin)
    return found, pictures[torch.linspace(0, len(numbers) - 1, SHOWN).long()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="checkpoint of a run with adapters")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--weight", type=float, default=1.0, help="of the adversarial term")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    export(given.student, given.out / "lora", lora=True)
    (lora,) = (given.out / "lora").glob("*.safetensors")
    configs = ("configs/trainer.yaml", "configs/text_quickstart/student.yaml")
    cli = run_trainer(
        [
            *(part for path in configs for part in ("--config", path)),
            "--model.roles=SharedBase",
            f"--model.roles.rank={given.rank}",
            "--model.roles.targets=all",
            f"--model.student={lora}",
            f"--model.objective.adversarial_weight={given.weight}",
            f"--trainer.max_steps={given.updates}",
            f"--trainer.default_root_dir={given.out / 'run'}",
        ],
        run=False,
    )
    plain = cli.datamodule
    bold = BoldCaptionedDigits(prompts=plain.prompts, batch_size=plain.batch_size)
    means = [float(ink(d.held_out_samples.x.float(), d.held_out_samples.labels).mean()) for d in (plain, bold)]
    with torch.no_grad():
        before, first = measured(load_model(given.student), plain, *means)
    cli.trainer.fit(cli.model, datamodule=bold)
    with torch.no_grad():
        after, last = measured(cli.model.generative_model(), plain, *means)
    found = {"ink of thin and bold digits": means, "before": before, "after": after}
    write_json(given.out / "style.json", found)
    show(torch.cat([part for pair in zip(first.split(8), last.split(8), strict=True) for part in pair])).save(
        given.out / "before_after.png"
    )
    for name, value in found.items():
        print(name, value)


if __name__ == "__main__":
    main()
