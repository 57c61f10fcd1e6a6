"""`fdistill export`: a run checkpoint becomes a folder that diffusers loads."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from fdistill.cli.commands.sampling import resampled
from fdistill.core.places import require_replaceable
from fdistill.core.presets import checkpoint as known_checkpoint
from fdistill.core.weight_files import CheckpointError, read_json
from fdistill.evaluation.report.table import print_table
from fdistill.io.export import export_folder
from fdistill.io.export.folder import loads_in_stock_diffusers
from fdistill.io.export.lora import Names, export_lora
from fdistill.io.export.program import FILES, Program
from fdistill.io.load import load_model
from fdistill.sampling import Sampler
from fdistill.sampling.generator import GenerativeModel
from fdistill.sampling.grids import SamplingGrid


def export(
    checkpoint: str,
    folder: str,
    report: str | None = None,
    sampler: Sampler | None = None,
    steps: int | None = None,
    grid: SamplingGrid | None = None,
    guidance: float | None = None,
    guidance_interval: list[float] | None = None,
    guide: str | None = None,
    temperature: float | None = None,
    onnx: bool = False,
    torch_export: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    lora: bool = False,
    lora_names: Names = "peft",
) -> None:
    """Write a folder that diffusers loads: the averaged weights as safetensors, configuration and model card.

    Args:
        checkpoint: a run's .ckpt file, or an exported folder whose card is to be written again.
        folder: the folder to write; an exported model that is there already is replaced.
        report: report.json of fdistill evaluate, whose numbers the model card then tells.
        sampler: of a teacher, in place of its own: Heun, Euler, DDIM, GDDIM, PredictorCorrector, Renoising, Restart.
        steps: of a teacher, on EDM's grid between its own first and last noise levels.
        grid: of a teacher, any other noise levels: KarrasGrid, PathGrid, GivenGrid.
        guidance: scale of a teacher's guidance; 1 for none.
        guidance_interval: two noise levels, low and high, between which guidance acts.
        guide: a worse teacher of the same samples, for autoguidance; the folder then holds it too.
        temperature: factor of a student's noise, 1 as it was trained; above 1 recall rises and precision falls.
        onnx: of a student, also write generator.onnx: latents and labels to samples, for any batch size.
        torch_export: of a student, also write generator.pt2, the same for torch.export.load.
        dtype: of the network's weights, of a text-to-image student; of its LoRA with --lora.
        lora: of a student or tuned teacher whose adapters learned, write these alone, as a LoRA file of the pipeline.
        lora_names: with --lora, names of the tensors: peft, which every pipeline loads; kohya, which ComfyUI takes too.
    """
    if lora and (onnx or torch_export):
        raise ValueError("a LoRA is no program: give --lora, or --onnx and --torch_export")
    if lora_names != "peft" and not lora:
        raise ValueError(f"names are those of a LoRA file: got --lora_names {lora_names} without --lora")
    require_replaceable(Path(folder), *_inputs(checkpoint, report, guide))
    loaded = load_model(checkpoint, merge=not lora)
    model = resampled(loaded, sampler, steps, grid, guidance, guidance_interval, guide, temperature)
    if report is not None and model is not loaded:
        raise ValueError(
            f"{report} measured the model as it was sampled before: export it first, then evaluate the folder"
        )
    numbers = None if report is None else _numbers(Path(report), model, checkpoint)
    wishes: tuple[tuple[Program, bool], ...] = (("onnx", onnx), ("torch_export", torch_export))
    programs = [program for program, wanted in wishes if wanted]
    if lora:
        target = export_lora(model, folder, lora_names, numbers, getattr(torch, dtype))
    else:
        target = export_folder(model, folder, numbers, programs, dtype=getattr(torch, dtype))
    if numbers is not None and model.kind == "student":
        print_table(numbers)
    if lora:
        print(f"wrote {target}: the LoRA of a {model.kind}, for load_lora_weights of the pipeline that it was made of")
        return
    loader = "stock diffusers" if loads_in_stock_diffusers(model) else "fdistill"
    evaluations = f"{model.evaluations} network evaluation{'s' * (model.evaluations > 1)}"
    print(f"wrote {target}: a {model.kind} of {evaluations} per sample, loaded by {loader}")
    for program in programs:
        print(
            f"wrote {target / FILES[program]}: its map from latents{' and labels' * (model.num_classes > 0)} to samples"
        )


def _inputs(checkpoint: str, *others: str | None) -> list[Path]:
    """All that is read, but for an exported folder itself, whose card may be written again."""
    source = known_checkpoint(checkpoint)
    return [Path(other) for other in others if other is not None] + ([] if source.is_dir() else [source])


def _numbers(path: Path, model: GenerativeModel, checkpoint: str) -> dict[str, Any]:
    """The report, if it measured this very model."""
    report = read_json(path, "a report.json of fdistill evaluate")
    if not isinstance(report.get("student"), dict) or "student_facts" not in report:
        raise CheckpointError(f"{path} is no report of fdistill evaluate: it has no student row and facts")
    if report.get(f"{model.kind}_facts") != json.loads(json.dumps(model.facts)):
        raise CheckpointError(
            f"{path} measured another model than {checkpoint}: run fdistill evaluate --checkpoint {checkpoint} first"
        )
    return report
