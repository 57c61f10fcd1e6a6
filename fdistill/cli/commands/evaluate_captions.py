"""The report of a student of captions: every row of both sets as a table, report.json, a page and its pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fdistill.core.atomic_files import replace_files, write_json
from fdistill.evaluation.caption_evaluation import (
    CaptionEvaluation,
    caption_teacher,
    evaluate_captions,
    one_step_row,
    teacher_row,
)
from fdistill.evaluation.report.grid import sample_grid_figure
from fdistill.evaluation.report.page import html_page
from fdistill.evaluation.sources import ModelSource, Source

COLUMNS = {
    "accuracy": "all right",
    "accuracy_digit": "digit",
    "accuracy_colours": "colours",
    "spread": "spread",
    "frechet_distance": "Fréchet",
    "recall": "recall",
    "vendi": "Vendi",
    "vendi_by_caption": "by caption",
}
_OTHERS = ("repeats", "features", "bootstrap", "feature_cache", "fid", "dinov2", "clip", "fid_reference")
_ABOVE = {
    "shown": "Captions that training images have",
    "new": "Captions that no training image has",
}


def measure_captions(
    folder: Path,
    student: ModelSource,
    teacher: Source | None,
    data: Any,
    n: int | None,
    seed: int,
    others: Sequence[Any],
) -> None:
    """Measure, write everything into the folder and print the tables.

    Raises:
        ValueError: for options of other reports, `others` by the order of `_OTHERS`; or a teacher that is no model.
    """
    given = [f"--{name}" for name, value in zip(_OTHERS, others, strict=True) if value is not None]
    if given:
        raise ValueError(f"a report on captions has its own features and draws: leave {', '.join(given)} out")
    result = evaluate_captions(student.model, caption_teacher(teacher), data, n, seed)
    written = write_captions(folder, result)
    print_captions(result.report)
    print("wrote " + ", ".join(str(path) for path in written))


def write_captions(folder: Path, result: CaptionEvaluation) -> list[Path]:
    """Write what was measured into a folder, all or nothing; its files."""
    with replace_files(folder) as made:
        return [folder / path.name for path in _made(made, result)]


def _made(folder: Path, result: CaptionEvaluation) -> list[Path]:
    written = [write_json(folder / "report.json", result.report)]
    scale = result.report["student_guidance"]
    pictures = {}
    for key, rows in result.pictures.items():
        titles = {
            "real": "Real, held out",
            "student": "Student",
            teacher_row(scale): f"Teacher, guidance {scale:g}",
            one_step_row(scale): "Teacher in one step",
        }
        shown = {title: rows[name] for name, title in titles.items() if name in rows}
        caption = f"{_ABOVE[key]}\nA row holds pictures of one caption."
        pictures[caption] = sample_grid_figure(shown, folder / f"{key}.png", n_per_row=8)
    text = "The table is of captions that training images have. report.json has all rows, of new captions too."
    page = html_page(folder / "index.html", "One-step generator of captions", result.report, pictures, text)
    return [*written, *pictures.values(), page]


def print_captions(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a table of each set to `console`, standard output by default."""
    console = console or Console()
    for key, rows in report["captions"].items():
        table = Table(
            box=box.SIMPLE_HEAD, title=f"{_ABOVE[key]}: {report['n']} pictures", title_justify="left", padding=0
        )
        table.add_column("")
        for title in COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        for name, row in rows.items():
            cells = [f"{row[column]:.2f}" if "vendi" in column else f"{row[column]:.3f}" for column in COLUMNS]
            table.add_row(name, *cells, style="bold" if name == "student" else None)
        console.print(table)
    for key, beside in report["student_beside_teacher"].items():
        ratios = ", ".join(
            f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}" for name, value in beside.items()
        )
        console.print(f"{key}: {ratios}", highlight=False)
