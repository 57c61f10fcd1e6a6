"""The rows of a report as a table of words, for the terminal and for the page."""

from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from fdistill.core.yaml_files import read_yaml

COLUMNS = {
    "frechet_distance": "Fréchet distance\u00a0↓",
    "precision": "Precision\u00a0↑",
    "recall": "Recall\u00a0↑",
    "accuracy": "Label accuracy\u00a0↑",
    "class_entropy": "Class entropy\u00a0↑",
    "vendi": "Vendi score",
}
ROWS = {
    "floor": "Real data (floor)",
    "teacher": "Teacher",
    "student": "Student",
    "class_gaussian": "One Gaussian per class",
}
MISSING = "-"
TINY = 0.0005  # would be shown as 0.000
FIRST_COLUMN = 16  # letters, of a terminal's 80


class Explained(NamedTuple):
    """One metric for a reader: its name, where it should be, and what it is and misses."""

    title: str
    better: str
    what: str


METRICS = {name: Explained(*entry) for name, entry in read_yaml(Path(__file__).with_name("metrics.yaml")).items()}
PUBLISHED = ("fid", "kid", "inception_score", "fd_dinov2", "clip_score")
"""Those by standard networks."""


def row_title(row: str, report: dict[str, Any]) -> str:
    """Return the words for a row, with the network evaluations that one sample costs where they are known."""
    evaluations = {"student": report.get("student_evaluations", 1), "teacher": report.get("teacher_evaluations")}
    count = evaluations.get(row)
    return ROWS[row] if count is None else f"{ROWS[row]}, {count} evaluation{'' if count == 1 else 's'}"


def table_cells(report: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the column titles and, for every row that the report holds, its key and its cells.

    A cell with a 95% interval has it on a second line.
    """
    rows = []
    for name in ROWS:
        numbers = report.get(name)
        if numbers is not None:
            rows.append((name, [row_title(name, report), *(_cell(column, numbers) for column in COLUMNS)]))
    return ["", *COLUMNS.values()], rows


def metric_cells(report: dict[str, Any]) -> tuple[list[str], list[tuple[Explained, list[str]]]]:
    """Return the titles of the rows that the report holds, and for every metric of any of them a cell for each."""
    names = [name for name in ROWS if report.get(name)]
    measured = {
        metric: explained
        for metric, explained in METRICS.items()
        if any(report[name].get(metric) is not None for name in names)
    }
    cells = [(said, [_cell(metric, report[name]) for name in names]) for metric, said in measured.items()]
    return [ROWS[name] for name in names], cells


def speedup_line(report: dict[str, Any]) -> str | None:
    """Return the sentence on the student's speed, or None when it was not measured."""
    speedup = report.get("speedup")
    return (
        None if speedup is None else f"The student makes {speedup:.3g} times as many samples per second as the teacher."
    )


def fid_lines(report: dict[str, Any]) -> list[str]:
    """Return a line for each metric by a standard network, then how they were measured; none where none was."""
    setup = report.get("fid_setup")
    if setup is None:
        return []
    lines = []
    for metric in PUBLISHED:
        numbers = {name: report[name][metric] for name in setup["samples"] if metric in report[name]}
        if numbers:
            values = ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())
            lines.append(f"{METRICS[metric].title}: {values}")
    counts = ", ".join(f"{name} {count:,}" for name, count in setup["samples"].items())
    lines.append(f"Samples: {counts}; {setup['pixels']}; seed {setup['seed']}.")
    for name, network in setup["networks"].items():
        against = ""
        if "reference_count" in network:
            count = "an unknown number of" if network["reference_count"] is None else f"{network['reference_count']:,}"
            against = f"; against {count} images: {setup['reference']['what']} ({network['reference_fingerprint']})"
        lines.append(
            f"{name}: {network['features']}, weights {network['weights']} ({network['fingerprint']}), "
            f"{network['preprocessing']}{against}."
        )
    return [*lines, *(f"Note: {note}." for note in setup["notes"])]


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report's rows, its verdict and the speed-up to `console`, standard output by default."""
    console = console or Console()
    titles, rows = table_cells(report)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=_caption(report),
        title_justify="left",
        title_style="dim",
        padding=0,  # so that all columns fit a terminal of 80
    )
    headings = [title.split() for title in titles]
    height = max(map(len, headings))
    for i, words in enumerate(headings):
        heading = "\n".join([""] * (height - len(words)) + words)  # a word a line, resting on the rule
        if i == 0:
            table.add_column(heading, max_width=FIRST_COLUMN)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(*cells, style="bold" if name == "student" else None)
    console.print(table)
    for line in (report.get("verdict"), speedup_line(report), *fid_lines(report)):
        if line:
            console.print(line, highlight=False, markup=False)


def _caption(report: dict[str, Any]) -> str | None:
    """Return how many samples the numbers come from, where the report says, and what the second lines are."""
    if "n" not in report:
        return None
    repeats = report.get("repeats", 1)
    draws = f", mean of {repeats} draws" if repeats > 1 else ""
    intervals = ", 95% intervals" if (report.get("student") or {}).get("intervals") else ""
    return f"{report['n']:,} samples{draws}{intervals}"


def _cell(metric: str, numbers: dict[str, Any]) -> str:
    """Return the number, and on a second line its interval where it has one."""
    value = numbers.get(metric)
    if value is None:
        return MISSING
    text = f"{value:.2f}" if metric == "vendi" else f"{value:.1e}" if 0 < abs(value) < TINY else f"{value:.3f}"
    interval = (numbers.get("intervals") or {}).get(metric)
    return text if interval is None else f"{text}\n{_ends(*interval)}"


def _ends(low: float, high: float) -> str:
    """Return an interval in at most nine letters where it is below 10,000: ".303-.337"."""
    between = " to " if low < 0 else "-"
    return between.join(_short(end) for end in (low, high))


def _short(value: float) -> str:
    """Return three digits, without a zero before the point."""
    decimals = 3 if abs(value) < 0.9995 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
