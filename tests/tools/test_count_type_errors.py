"""Type errors are counted by room: more than allowed fails, fewer asks for a lower number."""

import importlib.util
from types import SimpleNamespace

import pytest
from repository import ROOT

TOOL = ROOT / "tools" / "count_type_errors.py"
REPORT = """\
fdistill/theory/paths/ddpm.py:8: error: Need type annotation for "sub"  [var-annotated]
fdistill/theory/paths/ddpm.py:8: note: no error
fdistill/data/teacher_pairs.py:11: error: Item "None" of "Sampler | None" has no attribute "visits"  [union-attr]
fdistill/data/teacher_pairs.py:12:3: error: "Tensor" not callable  [operator]
Found 3 errors in 2 files (checked 245 source files)
"""


def load():
    spec = importlib.util.spec_from_file_location("count_type_errors", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def compare(allowed):
    return load().compare(REPORT, allowed)


def test_as_many_as_allowed_pass():
    assert compare({"paths": 1, "pairs": 2}) == (True, ["type errors: 3"])


def test_one_more_fails_and_shows_the_room():
    passed, words = compare({"paths": 1, "pairs": 1})
    assert not passed
    assert [word.split(":")[0] for word in words[:2]] == ["fdistill/data/teacher_pairs.py"] * 2


def test_a_room_without_a_number_has_no_errors():
    assert not compare({"pairs": 2})[0]


def test_fewer_pass_and_ask_for_the_lower_number():
    passed, words = compare({"paths": 4, "pairs": 2, "grids": 1})
    assert passed
    assert "paths from 4 to 1" in words[0]
    assert "grids from 1 to 0" in words[1]


@pytest.mark.parametrize(
    ("status", "out", "expected"),
    [
        (0, "Success: no issues found in 245 source files\n", 0),
        (1, "fdistill/new_room.py:1: error: x  [misc]\nFound 1 error in 1 file (checked 245 source files)\n", 1),
        (1, "", 2),  # python: No module named mypy
        (
            2,
            "fdistill/data/pairs.py:1: error: Invalid syntax\nFound 1 error in 1 file (errors prevented checking)\n",
            2,
        ),
    ],
)
def test_what_has_not_counted_does_not_pass(monkeypatch, status, out, expected):
    tool = load()
    done = SimpleNamespace(returncode=status, stdout=out, stderr="")
    monkeypatch.setattr(tool.subprocess, "run", lambda *args, **kwargs: done)
    assert tool.main() == expected
