"""`fdistill evaluate`: student beside teacher beside real data, as report.json and a page."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fdistill.commands.checked import require_writable, usable_device
from fdistill.data import GenerativeDataModule
from fdistill.evaluation import Evaluation, evaluate_models
from fdistill.loggers import FILE_NAME
from fdistill.report import html_page, print_table, sample_grid_figure, training_curves_figure, write_json
from fdistill.sources import DiffusersSource, Source, open_source

_SHOWN = 50  # samples of each source in the picture


def evaluate(
    checkpoint: str,
    teacher: str | None = None,
    data: str | None = None,
    n: int | None = None,
    repeats: int = 4,
    seed: int = 0,
    steps: int | None = None,
    out: str = "runs/evaluation",
    device: str = "cpu",
) -> None:
    """Measure a generator against held-out real data; writes report.json, samples.png and index.html.

    Args:
        checkpoint: a run's .ckpt file, a folder written by fdistill export, a local diffusers pipeline (a folder with
            model_index.json), or a folder of PNG or JPEG files, in class sub-folders or not.
        teacher: the same for its teacher; the one that the student was distilled from, where not given and still there.
        data: YAML file with a data section; the data that the model was trained on, where not given and remembered.
        n: samples of each source; the whole held-out split, but at most 5000, where not given.
        repeats: how many times to draw; the report holds the mean and the range.
        seed: seed of the samples and of the classifier whose features are compared.
        steps: num_inference_steps of a diffusers pipeline; its own default where not given.
        out: folder to write into.
        device: where to generate: cpu, cuda, cuda:1, mps.
    """
    folder, place = require_writable(Path(out) / "report.json").parent, usable_device(device)
    given = None if data is None else _data_of_file(data)
    student = open_source(checkpoint, place, None if given is None else given.sample_shape, steps)
    real = _remembered_data(student) if given is None else given
    teacher_path = teacher or _remembered_teacher(student)
    teacher_source = None if teacher_path is None else open_source(teacher_path, place, real.sample_shape, steps)
    if steps is not None and not any(isinstance(source, DiffusersSource) for source in (student, teacher_source)):
        raise ValueError(f"steps are those of a diffusers pipeline: got {steps} and no pipeline; leave --steps out")
    size = min(len(real.held_out_split.x), 5000) if n is None else n
    result = evaluate_models(student, teacher_source, real, size, seed, repeats)
    written = _write(folder, result, _curve_files(checkpoint, student))
    print_table(result.report)
    print("wrote " + ", ".join(str(path) for path in written))


def _remembered_teacher(student: Source) -> str | None:
    remembered = student.facts.get("teacher")
    if isinstance(remembered, str) and Path(remembered).exists():
        return remembered
    print("measured without a teacher: --teacher CHECKPOINT adds one")
    return None


def _remembered_data(student: Source) -> GenerativeDataModule:
    spec = student.facts.get("data")
    if spec is None:
        raise ValueError("this model does not say what data it was trained on: give --data FILE.yaml")
    return GenerativeDataModule.from_spec(spec)


def _data_of_file(given: str) -> GenerativeDataModule:
    try:
        spec: Any = OmegaConf.to_container(OmegaConf.load(given), resolve=True)["data"]
        name = spec["class_path"]
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {given} to read the data section from: check the path") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{given} has a reference that does not resolve: {str(error).splitlines()[0]}") from error
    except (OSError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{given} is no YAML file with a data section of class_path and init_args") from error
    path = name if "." in name else f"fdistill.data.{name}"
    return GenerativeDataModule.from_spec({"class_path": path, "init_args": spec.get("init_args") or {}})


def _curve_files(checkpoint: str, student: Source) -> dict[str, Path]:
    """metrics.jsonl of the run the checkpoint lies in, and of its teacher's."""
    sources = {"Student": Path(checkpoint)}
    if isinstance(student.facts.get("teacher"), str):
        sources = {"Teacher": Path(student.facts["teacher"]), **sources}
    files = {name: source.parent.parent / FILE_NAME for name, source in sources.items() if source.suffix == ".ckpt"}
    return {name: file for name, file in files.items() if file.is_file()}


def _write(folder: Path, result: Evaluation, curve_files: dict[str, Path]) -> list[Path]:
    report = result.report
    titles = {
        "student": _title("Student", report["student_evaluations"]),
        "teacher": _title("Teacher", report["teacher_evaluations"]),
        "floor": "Real training images",
        "class_gaussian": "One Gaussian per class",
    }
    shown = {title: result.samples[name][:_SHOWN] for name, title in titles.items() if name in result.samples}
    pictures = {"Samples": sample_grid_figure(shown, folder / "samples.png")}
    if curve_files:
        pictures["Training"] = training_curves_figure(curve_files, folder / "curves.png")
    page = html_page(folder / "index.html", "One-step generator", report, pictures)
    return [write_json(folder / "report.json", report), *pictures.values(), page]


def _title(name: str, evaluations: int | None) -> str:
    return name if evaluations is None else f"{name}, {evaluations} evaluation{'s' * (evaluations > 1)}"
