"""What the documents name exists: links and their anchors, dotted names of the package, paths of the repository."""

import importlib
import re

import pytest
from repository import ROOT

import fdistill
from fdistill.core.moved_names import todays_name

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
DOTTED = re.compile(r"(?<![\w/.-])fdistill(?:\.(?!json)\w+)+")
PLACE = re.compile(r"(?<![\w/.$~-])(?:configs|docs|examples|fdistill|tests|tools|checkpoints(?=/\w+-))/[\w./-]*\w")


def texts(documents):
    return [pytest.param(path, path.read_text(encoding="utf-8"), id=str(path.relative_to(ROOT))) for path in documents]


def anchors(text):
    """The anchors of headings, as GitHub and the site make them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path, text):
    for link in LINK.findall(text):
        file, _, anchor = link.partition("#")
        if ":" in file:
            continue
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(text if target == path else target.read_text())):
            yield link


def exists(name):
    """Whether a dotted name is a module, or something that a module or class holds, by the name of today."""
    parts = name.split(".")
    if parts[1:] and parts[1] in fdistill.__all__:
        return len(parts) == 2
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None and todays_name(name) == name
    return False


@pytest.mark.parametrize(("path", "text"), texts(DOCUMENTS))
def test_links_lead_somewhere(path, text):
    assert list(broken_links(path, text)) == []


@pytest.mark.parametrize(("path", "text"), texts(DOCUMENTS))
def test_dotted_names_can_be_imported(path, text):
    assert [name for name in DOTTED.findall(text) if not exists(name)] == []


@pytest.mark.parametrize(("path", "text"), texts(DOCUMENTS))
def test_paths_of_the_repository_exist(path, text):
    assert [place for place in PLACE.findall(text) if not (ROOT / place).exists()] == []


def test_what_is_not_there_is_found():
    text = "[a](nowhere.md) [b](#here) [c](#there) [d](https://example.org)\n# Here"
    assert list(broken_links(ROOT / "README.md", text)) == ["nowhere.md", "#there"]
    names = ("fdistill.core.spec", "fdistill.load", "fdistill.core.nothing", "fdistill.modules.TeacherModule")
    assert [exists(name) for name in names] == [True, True, False, False]
    assert PLACE.findall("`fdistill/nothing.py`, ~/.cache/fdistill/x and runs/docs/x") == ["fdistill/nothing.py"]
