"""`fdistill evaluate`: student beside teacher beside real data, as report.json and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fdistill.cli.commands.evaluate_captions import measure_captions
from fdistill.cli.commands.yaml_section import data_of_file, features_of_file
from fdistill.core.atomic_files import replace_files, write_json
from fdistill.core.devices import usable_device
from fdistill.core.places import require_writable
from fdistill.data import GenerativeDataModule, remembered_data
from fdistill.evaluation.caption_evaluation import takes_captions
from fdistill.evaluation.evaluate import Evaluation, evaluate_models, remembered_teacher
from fdistill.evaluation.features import default_extractor
from fdistill.evaluation.fid import FidSuite, Measured, open_reference, training_reference
from fdistill.evaluation.fid import networks as networks_of
from fdistill.evaluation.report.dashboard import FILE_NAME, dashboard_page, read_runs
from fdistill.evaluation.report.evidence_figures import (
    class_bars_figure,
    copies_figure,
    intervals_figure,
    spectra_figure,
)
from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.report.page import html_page
from fdistill.evaluation.report.table import print_table
from fdistill.evaluation.sources import DiffusersSource, ModelSource, Source, open_source

_OF_A_MODEL = ("fdistill.json", "model_index.json", "checkpoints")  # a folder of it may take its report, too
_INTERVALS = """What overlaps
The dot is the mean over draws, the line where 95% of single draws would lie. Rows whose lines overlap are not told \
apart by that metric."""
_SPECTRA = """Spectra of the Vendi kernel
How evenly samples spread over the directions of the feature space. A student that falls off faster than real data has \
fewer different samples; one whose tail stays higher adds noise."""
_CLASSES = """Precision and recall by class
Share of the samples of a class among all real ones, and of the real samples of a class among all generated ones."""
_COPIES = """Samples nearest to a training image
The likest first. Below each pair the distance over that to the second nearest: under .33 it is a copy."""


def evaluate(
    checkpoint: str,
    teacher: str | None = None,
    data: str | None = None,
    n: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str = "runs/evaluation",
    device: str = "cpu",
    features: str | None = None,
    bootstrap: int | None = None,
    feature_cache: str | None = None,
    fid: str | None = None,
    dinov2: str | None = None,
    clip: str | None = None,
    fid_reference: str | None = None,
    fid_samples: int = 50_000,
) -> None:
    """Measure a generator against held-out real data; writes report.json, index.html and its pictures.

    Args:
        checkpoint: a run's .ckpt file, a folder written by fdistill export, a local diffusers pipeline (a folder with
            model_index.json), a folder or archive of images, in class sub-folders or not, or samples in a .npz of
            fdistill sample or of ADM.
        teacher: the same for its teacher; the one that the student was distilled from, where not given and still there.
        data: YAML file with a data section; the data that the model was trained on, where not given and remembered.
        n: samples of each source; the whole held-out split, but at most 5000 and as many as there are training
            samples, where not given. Of a student of captioned digits a multiple of 30 captions; 480 where not given.
        repeats: how many times to draw; the report holds the mean and the range. 4 times, or as often as makes 10,000
            samples of each source in all, where not given.
        seed: seed of the samples and of the classifier whose features are compared.
        steps: num_inference_steps of a diffusers pipeline; its own default where not given.
        out: folder to write into.
        device: where to generate, and to extract the features of a file: cpu, cuda, cuda:1, mps.
        features: YAML file with a features section, class_path and init_args of a class of
            fdistill.evaluation.features; a small classifier trained on the data, or the values themselves, where not
            given.
        bootstrap: splits into random halves that the intervals come from, 0 for none; 30, or 10 above 256 features
            or 2,000 samples, where not given.
        feature_cache: folder in which the classifier and the features of real samples are kept for the next evaluation;
            where not given the classifier, and what was read of the teacher's samples, in the user's cache
            ($XDG_CACHE_HOME/fdistill or ~/.cache/fdistill).
        fid: also FID, KID and Inception score; file of torch-fidelity's weights of Inception, or hub:inception.
        dinov2: also the Frechet distance in DINOv2; file of timm's weights, MODEL=FILE, or hub:MODEL.
        clip: also the CLIP score with the names of classes; MODEL=FILE or hub:MODEL/TAG of OpenCLIP.
        fid_reference: what these three compare with: a folder of images, an .npz of mu and sigma or of images arr_0, or
            a report made with fid; the training split, where not given.
        fid_samples: samples of each source for these three.
    """
    folder, place = _folder(Path(out), [checkpoint, teacher, fid_reference]), usable_device(device)
    given = None if data is None else data_of_file(data).in_pixels(place)
    extractor = None if features is None else features_of_file(features, place)
    student, teacher_source, real = _opened(checkpoint, teacher, given, steps, place)
    _check_apart(folder, getattr(real, "folder", None))
    if isinstance(student, ModelSource) and takes_captions(student.model, real):
        others = (repeats, features, bootstrap, feature_cache, fid, dinov2, clip, fid_reference)
        measure_captions(folder, student, teacher_source, real, n, seed, others)
        return
    extractor = extractor or default_extractor(real.sample_shape, real.num_classes)
    extractor = extractor.keep_learned() if feature_cache is None else extractor.keep_in(feature_cache)
    sources = {"student": student} | ({} if teacher_source is None else {"teacher": teacher_source})
    suite = _fid_suite((fid, dinov2, clip), fid_reference, fid_samples, seed, real, place)
    if suite is not None:
        suite.check(sources)  # hours before it is needed
    result = evaluate_models(student, teacher_source, real, n, seed, repeats, bootstrap, extractor)
    measured = None if suite is None else suite.measure(sources)
    written = _write(folder, result, _runs(checkpoint, student), measured)
    print_table(result.report)
    print("wrote " + ", ".join(str(path) for path in written))


def _folder(out: Path, sources: Sequence[str | None]) -> Path:
    report = require_writable(out / "report.json")
    for source in sources:
        _check_apart(out, source)
    if report.exists():
        print(f"{report} and its pictures are there already and will be replaced")
    return out


def _check_apart(out: Path, source: str | None) -> None:
    """Raises ValueError where the report's pictures would lie among images that are measured."""
    if source is None or not Path(source).is_dir() or any((Path(source) / name).exists() for name in _OF_A_MODEL):
        return
    if out.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{out} lies in {source}, whose images are measured: name a folder outside with --out")


def _opened(
    checkpoint: str, teacher: str | None, given: GenerativeDataModule | None, steps: int | None, place: torch.device
) -> tuple[Source, Source | None, GenerativeDataModule]:
    """Student, teacher and real data: what was given, or what the student remembers."""
    shape, classes = (None, None) if given is None else (given.sample_shape, given.num_classes)
    student = open_source(checkpoint, place, shape, steps, classes)
    if "read_as" in student.facts:
        print(f"{checkpoint}: {student.facts['samples']:,} samples, read as {student.facts['read_as']}")
        if given is None:
            raise ValueError(f"{checkpoint} holds samples alone, not the data to compare with: give --data FILE.yaml")
    real = remembered_data(student.facts).in_pixels(place) if given is None else given
    path, expected = teacher or _remembered_teacher(student), (real.sample_shape, steps, real.num_classes)
    teacher_source = None if path is None else open_source(path, place, *expected)
    if steps is not None and not any(isinstance(source, DiffusersSource) for source in (student, teacher_source)):
        raise ValueError(f"steps are those of a diffusers pipeline: got {steps} and no pipeline; leave --steps out")
    return student, teacher_source, real


def _remembered_teacher(student: Source) -> str | None:
    remembered = remembered_teacher(student.facts)
    if remembered is None:
        print("measured without a teacher: --teacher CHECKPOINT adds one")
    return remembered


def _fid_suite(
    given: tuple[str | None, str | None, str | None],
    reference: str | None,
    n: int,
    seed: int,
    data: GenerativeDataModule,
    place: torch.device,
) -> FidSuite | None:
    """What measures by the standard networks that were given: of fid, dinov2, clip; None where none was."""
    fid, dinov2, clip = given
    networks = [] if fid is None else [networks_of.inception(fid, place)]
    networks += [] if dinov2 is None else [networks_of.dinov2(dinov2, place)]
    networks += [] if clip is None else [networks_of.clip(clip, getattr(data, "class_names", []), place)]
    if not networks:
        if reference is not None:
            raise ValueError(
                f"fid_reference is what fid or dinov2 compares with: got {reference} and neither; give one"
            )
        return None
    shape = data.sample_shape
    opened = training_reference(data) if reference is None else open_reference(reference, shape)
    return FidSuite(networks, opened, n, seed, shape)


def _runs(checkpoint: str, student: Source) -> list[Path]:
    """The folders of the runs that made the checkpoint and its teacher, as far as they hold metrics.jsonl."""
    made = [Path(path) for path in (student.facts.get("teacher"), checkpoint) if isinstance(path, str)]
    folders = [path.parent.parent for path in made if path.suffix == ".ckpt"]
    return [folder for folder in dict.fromkeys(folders) if (folder / FILE_NAME).is_file()]


def _write(folder: Path, result: Evaluation, runs: list[Path], measured: Measured | None) -> list[Path]:
    """Report, pictures and page: all or, where one cannot be made, none."""
    with replace_files(folder) as made:
        return [folder / path.name for path in _made(made, result, runs, measured)]


def _made(folder: Path, result: Evaluation, runs: list[Path], measured: Measured | None) -> list[Path]:
    """The report first, because it refuses what is no number, then the pictures, then the page that holds them."""
    report = result.report
    if measured is not None:
        report |= {name: report[name] | row for name, row in measured.rows.items()} | {"fid_setup": measured.setup}
    written = [write_json(folder / "report.json", report)]
    if measured is not None:
        written += [statistics.write(folder / name) for name, statistics in measured.statistics.items()]
    titles = {
        "student": _title("Student", report["student_evaluations"]),
        "teacher": _title("Teacher", report["teacher_evaluations"]),
        "floor": "Real training images",
        "class_gaussian": "One Gaussian per class",
    }
    shown = {title: result.samples[name] for name, title in titles.items() if name in result.samples}
    pictures = {
        "Samples": sample_grid_figure(shown, folder / "samples.png"),
        _INTERVALS: intervals_figure(report, folder / "intervals.png"),
        _SPECTRA: spectra_figure(result.spectra, folder / "spectra.png"),
    }
    rows = [name for name in ("floor", "teacher", "student") if name in report]
    by_class: dict[str, Any] = {name: report[name]["per_class"] for name in rows if "per_class" in report[name]}
    if "student" in by_class:
        pictures[_CLASSES] = class_bars_figure(by_class, folder / "classes.png")
    if result.copies.generated.ndim == 4:
        copies = result.copies
        pictures[_COPIES] = copies_figure(copies.generated, copies.training, copies.ratio, folder / "nearest.png")
    pages = [html_page(folder / "index.html", "One-step generator", report, pictures)]
    if runs:
        pages.append(dashboard_page(read_runs(runs), folder / "training.html"))
    return [*written, *pictures.values(), *pages]


def _title(name: str, evaluations: int | None) -> str:
    return name if evaluations is None else f"{name}, {evaluations} evaluation{'s' * (evaluations > 1)}"
