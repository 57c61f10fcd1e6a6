"""A service in a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

CHROMIUM = Path("/usr/bin/chromium")


@contextlib.contextmanager
def live(*arguments, before=""):
    """`fdistill serve` on a free port, once it listens: its process and its address; killed at the end if it runs.

    Args:
        arguments: of the command.
        before: code that the process runs before.
    """
    code = f"import sys\nfrom fdistill.cli.main import main\n{before}\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            place = re.search(r"serving .* on (http://\S+)", line)
            if place:
                break
        else:
            raise AssertionError("".join(said))
        yield process, place[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def accepted(place):
    """Images that are answered or wait."""
    metrics = httpx.get(f"{place}/metrics", timeout=60).text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[:1] != "#")
    return float(values["fdistill_images_total"]) + float(values["fdistill_queue_images"])


@contextlib.contextmanager
def visited(place):
    """A page of Chromium at an address, skipped without one: neither errors nor requests of other places at the end."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM} here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, wrong, asked = browser.new_page(), [], []
        page.on("pageerror", lambda error: wrong.append(error))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(place)
        yield page, wrong
        assert all(url.startswith((place, "data:")) for url in asked)
        browser.close()
