"""A page that shows how runs go: the panels of `fdistill.evaluation.report.panels`, runs overlaid, in one HTML file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from os.path import commonpath
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fdistill.evaluation.report.curves import RunLog, draw_curve, draw_references, read_run_log, style_axes
from fdistill.evaluation.report.figure_file import BLUE, png, styled
from fdistill.evaluation.report.page import write_page
from fdistill.evaluation.report.panels import COLLAPSE, PICTURES, Group, Panel, all_groups

FILE_NAME = "metrics.jsonl"
PICTURE_FOLDERS = ("samples", "diagnosis")
COLOURS = (BLUE, "#d1571d", "#2a8a4a", "#8b4fb3", "#b08900", "#0e8f9c", "#c23b6b", "#6b7280")
MANY = 6  # names, above which they are shades of one colour
AXES = (4.5, 2.5)  # inches
LEGEND = 70  # letters in a line of it
REASONS = 5  # last ones that are told of a run


@dataclass
class Run:
    """A run folder that has been read."""

    folder: Path
    log: RunLog
    colour: str

    def pictures(self) -> Iterator[Path]:
        """The newest picture of each kind: names are <kind>_<turn>.png or <turn>.png."""
        for name in PICTURE_FOLDERS:
            by_turn = sorted((self.folder / name).glob("*.png"), key=lambda path: (len(path.stem), path.stem))
            yield from {path.stem.rstrip("0123456789"): path for path in by_turn}.values()

    def alarms(self) -> dict[str, tuple[bool, list[tuple[float, str]]]]:
        """By its name, whether an alarm is on, and its last reasons in words with their steps."""
        return {
            name: (bool(self.log.curves[f"{name}/alarm"][1][-1]), self.log.words.get(f"{name}/reason", [])[-REASONS:])
            for name in sorted(curve.removesuffix("/alarm") for curve in self.log.curves if curve.endswith("/alarm"))
        }


def read_runs(folders: Sequence[str | Path]) -> dict[str, Run]:
    """Read run folders; returns them by title, which is the folder's name, or the path where names repeat.

    Raises:
        ValueError: without a folder, for one given twice, or one without a readable metrics.jsonl.
    """
    paths = [Path(folder) for folder in folders]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a dashboard shows run folders, each once: got {', '.join(map(str, paths)) or 'none'}")
    names = [path.resolve().name for path in paths]
    runs = {}
    for i, (path, name) in enumerate(zip(paths, names, strict=True)):
        if not (path / FILE_NAME).is_file():
            raise ValueError(f"{path} is no run folder: it has no {FILE_NAME}; name a folder that fdistill fit writes")
        title = name if names.count(name) == 1 else str(path)
        runs[title] = Run(path, read_run_log(path / FILE_NAME), COLOURS[i % len(COLOURS)])
    return runs


def dashboard_page(runs: Mapping[str, Run], path: str | Path) -> Path:
    """Write one self-contained page to `path` and return the path; it loads nothing from anywhere."""
    *sections, rest = curve_sections(runs)
    sections = [*sections, _pictures(runs), rest]
    return write_page(path, "dashboard.html", title=", ".join(runs), runs=runs, sections=sections)


def curve_sections(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Title and figures (title, PNG, what is well, width) of every group of panels, with reasons of alarms."""
    names = sorted({name for run in runs.values() for name in run.log.curves})
    return [_section(group, names, runs) for group in all_groups(names)]


def _section(group: Group, names: list[str], runs: Mapping[str, Run]) -> dict[str, Any]:
    """The panels of a group that any run logged; below those of the alarm its reasons."""
    figures = [figure for panel in group.panels if (figure := _panel(panel, names, runs))]
    reasons = [
        (title, step, reason)
        for title, run in runs.items()
        for _, reasons in run.alarms().values()
        for step, reason in reasons
    ]
    return {"title": group.title, "well": "", "figures": figures, "reasons": reasons * (group.title == COLLAPSE)}


def _pictures(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The newest pictures of all runs."""
    figures = [
        (f"{title}: {picture.parent.name}/{picture.name}", picture.read_bytes())
        for title, run in runs.items()
        for picture in run.pictures()
    ]
    return {"title": PICTURES.title, "well": PICTURES.well, "figures": figures, "reasons": []}


@styled
def _panel(panel: Panel, names: list[str], runs: Mapping[str, Run]) -> tuple[str, bytes, str, str] | None:
    """The panel's title, picture, sentence and width; None where no run logged it."""
    drawn = sorted((name for name in names if panel.holds(name)), key=_natural)
    if not drawn:
        return None
    apart = len(runs) > 1 and 1 < len(drawn) <= MANY  # colours tell the runs, so every number gets axes of its own
    parts = [[name] for name in drawn] if apart else [drawn]
    lines, across = -(-len(parts) // 2), min(len(parts), 2)
    figure = Figure(figsize=(AXES[0] * across, AXES[1] * lines), layout="constrained")
    for axes, part in zip_longest(figure.subplots(lines, across, squeeze=False).flat, parts):
        if part is None:
            axes.set_visible(False)
            continue
        _draw(axes, part, runs)
        if apart:
            axes.set_title(part[0])
    return panel.title, png(figure), panel.well, "wide" if apart else "narrow"


def _draw(axes: Axes, names: list[str], runs: Mapping[str, Run]) -> None:
    """Draw numbers of all runs, each with its teacher and its floor."""
    shown, last = [], 1.0
    colours = _shades(names) if len(runs) == 1 else {}
    for run in runs.values():
        for name in names:
            if name not in run.log.curves:
                continue
            colour, (steps, values) = colours.get(name, run.colour), run.log.curves[name]
            draw_curve(axes, steps, values, colour, _pale(colour))
            shown += [*values, *draw_references(axes, name, run.log.curves, colour)]
            last = max(last, *steps)
    style_axes(axes, shown)
    axes.set_xlim(0, 1.02 * last)
    if len(names) > 1 and len(runs) == 1:
        _name_lines(axes, colours)


def _name_lines(axes: Axes, colours: Mapping[str, str]) -> None:
    """Say above the axes which colour is which number, without the folder that all names share."""
    prefix = f"{folder}/" if (folder := commonpath(colours)) else ""
    handles = [Line2D([], [], color=colour, label=name.removeprefix(prefix)) for name, colour in colours.items()]
    longest = max(len(str(handle.get_label())) for handle in handles)
    axes.legend(
        handles=handles,
        ncols=max(1, LEGEND // (longest + 6)),
        fontsize=7,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        handlelength=1.2,
        columnspacing=0.9,
    )


def _shades(names: list[str]) -> dict[str, str]:
    """A colour for each name: different ones for a few, shades in order for many."""
    if len(names) <= MANY:
        return dict(zip(names, COLOURS, strict=False))
    return {name: to_hex(colormaps["viridis"](0.9 * i / (len(names) - 1))) for i, name in enumerate(names)}


def _pale(colour: str) -> str:
    return to_hex(tuple(0.4 * part + 0.6 for part in to_rgb(colour)))


def _natural(name: str) -> tuple[str, int, str]:
    """Sort bin 10 after bin 9."""
    stem, _, last = name.rpartition("/")
    return (stem, int(last), "") if last.isdigit() else (stem, -1, last)
