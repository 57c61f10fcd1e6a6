"""The page that a person reads: one HTML file with the table, the pictures and how it was measured."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fdistill.core.atomic_files import atomic_write
from fdistill.evaluation.report.table import fid_lines, metric_cells, speedup_line, table_cells

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
FACTS = {"n": "Samples", "repeats": "Draws averaged", "seed": "Seed", "seconds": "Seconds", "features": "Features"}


def html_page(
    path: str | Path, title: str, report: dict[str, Any], images: Mapping[str, str | Path], text: str = ""
) -> Path:
    """Write one self-contained page to `path` and return the path; it loads nothing from anywhere.

    Args:
        title: the heading.
        report: the rows and facts; rows it lacks are skipped, plain facts it has beyond FACTS are listed too.
        images: caption to a PNG file, put into the page itself; what follows a line break in a caption stands below it.
        text: paragraphs before the table, separated by empty lines; plain text.
    """
    columns, rows = table_cells(report)
    measured, metrics = metric_cells(report)
    captions = [caption.partition("\n") for caption in images]
    return write_page(
        path,
        "report.html",
        title=title,
        text=text,
        verdict=report.get("verdict"),
        columns=columns,
        rows=rows,
        speedup=speedup_line(report),
        pictures=[
            (name, below, Path(source).read_bytes())
            for (name, _, below), source in zip(captions, images.values(), strict=True)
        ],
        measured=measured,
        metrics=metrics,
        fid_lines=fid_lines(report),
        facts=_facts(report),
    )


def write_page(path: str | Path, template: str, **shown: Any) -> Path:
    """Fill one of the templates, in which all text is escaped and pictures are PNG bytes, and write it to `path`."""
    return atomic_write(path, _TEMPLATES.get_template(template).render(shown))


def _facts(report: dict[str, Any]) -> dict[str, str]:
    """How the numbers were made, by title."""
    shown = {**FACTS, **{key: key.replace("_", " ").capitalize() for key in report if key not in FACTS}}
    facts = {}
    for key, title in shown.items():
        value = report.get(key)
        if key == "seconds" and isinstance(value, dict):
            value = ", ".join(f"{name} {seconds:.3g}" for name, seconds in value.items())
        if value is None or key in ("speedup", "verdict") or isinstance(value, dict | list):
            continue
        facts[title] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return facts
