"""The page that a person reads: one HTML file with the table, the pictures and how it was measured."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fdistill.core.atomic_files import atomic_write
from fdistill.evaluation.report.table import fid_lines, metric_cells, speedup_line, table_cells

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --line: #d1d9e0; --back: #fff; --mark: #eaf2fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d; --back: #0d1117; --mark: #16273d; }
}
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem; color: var(--ink); background: var(--back);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; line-height: 1.25; }
p { max-width: 44rem; }
.scroll { overflow-x: auto; margin: 1.5rem 0 .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--dim); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 400; }
tr.student > * { background: var(--mark); font-weight: 600; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 0; }
p.verdict { border-left: .25rem solid #2563a8; padding: .1rem 0 .1rem 1rem; max-width: 54rem; }
table.all th[scope="row"] { white-space: normal; min-width: 14rem; }
table.all th[scope="row"] small { display: block; color: var(--dim); line-height: 1.35; }
table.all td:nth-child(2) { text-align: left; color: var(--dim); }
td small { display: block; color: var(--dim); font-weight: 400; }
.dim { color: var(--dim); font-size: .9rem; }
figure { margin: 2.25rem 0 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; font-size: .9rem; margin-top: 2.5rem;
  border-top: 1px solid var(--line); padding-top: 1rem; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
HOW_TO_READ = (
    "↑ more is better, ↓ less is better. The floor measures real training samples against held-out ones: "
    "distances near it are sampling noise. Below each number stands where 95% of other draws of as many samples would "
    "lie; for distances near the floor the range is rather too wide. One Gaussian per class is the simplest generator "
    "with the right labels: a student that does not beat it has learned little. Precision is quality, recall and class "
    "entropy are diversity; a Vendi score above the floor's is blur, not diversity."
)
FACTS = {"n": "Samples", "repeats": "Draws averaged", "seed": "Seed", "seconds": "Seconds", "features": "Features"}


def html_page(
    path: str | Path, title: str, report: dict[str, Any], images: Mapping[str, str | Path], text: str = ""
) -> Path:
    """Write one self-contained page to `path` and return the path; it loads nothing from anywhere.

    Args:
        path: the file to write; missing folders are made.
        title: the heading.
        report: the rows and facts; rows it lacks are skipped, plain facts it has beyond FACTS are listed too.
        images: caption to a PNG file, put into the page itself; what follows a line break in a caption stands below it.
        text: paragraphs before the table, separated by empty lines; plain text.

    Raises:
        OSError: when a picture cannot be read or the page not written.
    """
    speedup = speedup_line(report)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(paragraph.strip())}</p>" for paragraph in text.split("\n\n") if paragraph.strip()),
        f'<p class="verdict">{escape(report["verdict"])}</p>' if report.get("verdict") else "",
        _table(report),
        "" if speedup is None else f"<p><strong>{escape(speedup)}</strong></p>",
        f'<p class="dim">{HOW_TO_READ}</p>',
        *(_figure(caption, Path(source)) for caption, source in images.items()),
        _metrics(report),
        *(f'<p class="dim">{escape(line)}</p>' for line in fid_lines(report)),
        _facts(report),
    ]
    return atomic_write(path, html_document(title, parts))


def html_document(title: str, parts: Iterable[str], more_style: str = "") -> str:
    """Return a whole document in the style of every page here, from pieces of HTML; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{more_style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _table(report: dict[str, Any]) -> str:
    titles, rows = table_cells(report)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = []
    for name, (first, *numbers) in rows:
        cells = "".join(f"<td>{_number(cell)}</td>" for cell in numbers)
        body.append(f'<tr class="{name}"><th scope="row">{escape(first)}</th>{cells}</tr>')
    lines = "\n".join(body)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'


def _metrics(report: dict[str, Any]) -> str:
    """Every metric of every row, with what it is and what it misses."""
    titles, rows = metric_cells(report)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in ("", "", *titles))
    body = []
    for said, numbers in rows:
        name = f'<th scope="row">{escape(said.title)}<small>{escape(said.what)}</small></th>'
        cells = "".join(f"<td>{text}</td>" for text in (escape(said.better), *map(_number, numbers)))
        body.append(f"<tr>{name}{cells}</tr>")
    lines = "\n".join(body)
    table = f'<table class="all">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>'
    return f'<h2>All metrics</h2>\n<div class="scroll">{table}</div>'


def _number(cell: str) -> str:
    """Put the interval, where a cell has one, below the number."""
    number, _, spread = escape(cell).partition("\n")
    return f"{number}<small>{spread}</small>" if spread else number


def _figure(caption: str, source: Path) -> str:
    data = base64.b64encode(source.read_bytes()).decode("ascii")
    text, _, said = escape(caption).partition("\n")
    below = f'<p class="dim">{said}</p>' if said else ""
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure><figcaption>{text}</figcaption>{image}{below}</figure>"


def _facts(report: dict[str, Any]) -> str:
    """List how the numbers were made."""
    shown = {**FACTS, **{key: key.replace("_", " ").capitalize() for key in report if key not in FACTS}}
    items = []
    for key, label in shown.items():
        value = report.get(key)
        if key == "seconds" and isinstance(value, dict):
            value = ", ".join(f"{name} {seconds:.3g}" for name, seconds in value.items())
        if value is None or key in ("speedup", "verdict") or isinstance(value, dict | list):
            continue
        value = f"{value:.4g}" if isinstance(value, float) else str(value)
        items.append(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>")
    return f"<dl>{''.join(items)}</dl>" if items else ""
