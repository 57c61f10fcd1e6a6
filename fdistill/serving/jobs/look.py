"""What a run looks like while it trains: alarms in words, its newest pictures and its curves, for a page."""

import asyncio
import base64
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fdistill.evaluation.report.dashboard import FILE_NAME, PICTURE_FOLDERS, curve_sections, read_runs
from fdistill.serving.shelf import stamp

_KEPT = 8  # looks of a megabyte each
_DRAWING = ThreadPoolExecutor(1, "curves")  # matplotlib's settings are those of the whole process


async def look(folder: Path) -> bytes:
    """JSON of alarms, pictures and sections of curves, empty before a run has logged; drawn when something is new.

    Raises:
        ValueError: where the run's metrics.jsonl holds no curves.
    """
    return await asyncio.get_running_loop().run_in_executor(_DRAWING, _newest, folder)


def _newest(folder: Path) -> bytes:
    return _drawn(folder, tuple(stamp(folder / name) for name in (FILE_NAME, *PICTURE_FOLDERS)))


@functools.lru_cache(_KEPT)
def _drawn(folder: Path, _: tuple[Any, ...]) -> bytes:
    if not (folder / FILE_NAME).is_file():
        return json.dumps({"alarms": [], "pictures": [], "sections": []}).encode()
    runs = read_runs([folder])
    ((_name, run),) = runs.items()
    alarms = [{"name": name, "on": on, "reasons": reasons} for name, (on, reasons) in run.alarms().items()]
    pictures = [
        {"title": f"{file.parent.name}/{file.name}", "png": _text(file.read_bytes())} for file in run.pictures()
    ]
    sections = [
        {
            "title": section["title"],
            "figures": [
                {"title": title, "png": _text(data), "well": well} for title, data, well, _ in section["figures"]
            ],
        }
        for section in curve_sections(runs)
        if section["figures"]
    ]
    return json.dumps({"alarms": alarms, "pictures": pictures, "sections": sections}).encode()


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
