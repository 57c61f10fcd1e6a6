"""The rows of a report as a table of words, for the terminal and for the page."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

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


def row_title(row: str, report: dict[str, Any]) -> str:
    """Return the words for a row, with the network evaluations that one sample costs where they are known."""
    evaluations = {"student": 1, "teacher": report.get("teacher_evaluations")}.get(row)
    if evaluations is None:
        return ROWS[row]
    return f"{ROWS[row]}, {evaluations} evaluation{'' if evaluations == 1 else 's'}"


def table_cells(report: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the column titles and, for every row that the report holds, its key and its cells.

    A cell with a range over repeats has it on a second line.
    """
    rows = []
    for name in ROWS:
        numbers = report.get(name)
        if numbers is not None:
            rows.append((name, [row_title(name, report), *(_cell(column, numbers) for column in COLUMNS)]))
    return ["", *COLUMNS.values()], rows


def speedup_line(report: dict[str, Any]) -> str | None:
    """Return the sentence on the student's speed, or None when it was not measured."""
    speedup = report.get("speedup")
    return (
        None if speedup is None else f"The student makes {speedup:.3g} times as many samples per second as the teacher."
    )


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report's rows and the speed-up to `console`, standard output by default."""
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
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for name, cells in rows:
        table.add_row(*cells, style="bold" if name == "student" else None)
    console.print(table)
    line = speedup_line(report)
    if line is not None:
        console.print(line)


def _caption(report: dict[str, Any]) -> str | None:
    """Return how many samples the numbers come from, where the report says."""
    if "n" not in report:
        return None
    repeats = report.get("repeats", 1)
    return f"{report['n']:,} samples" + (f", mean of {repeats} draws" if repeats > 1 else "")


def _cell(column: str, numbers: dict[str, Any]) -> str:
    """Return the number, and on a second line its range over repeats where there is one."""
    value = numbers.get(column)
    if value is None:
        return MISSING
    if column == "vendi":
        return f"{value:.2f}"
    text = f"{value:.3f}"
    low, high = numbers.get(f"{column}_range") or (value, value)
    return f"{text}\n{low:.3f}-{high:.3f}" if high > low else text
