"""Private names of other libraries: each is still there, and none is used that the list does not have."""

import ast
import importlib
import inspect
import re
import tomllib

import pytest
from repository import ROOT

from fdistill.core.private_apis import USED

TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "fdistill").rglob("*.py")]
PUBLIC = {"_replace", "_asdict", "_fields"}  # of named tuples


def resolve(name):
    """What a dotted name of `USED` stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part) and isinstance(found, type) and f"self.{part}" in inspect.getsource(found):
                return part  # an attribute of its objects
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_every_private_name_is_still_there():
    vanished = []
    for name in USED:
        try:
            resolve(name)
        except (ImportError, AttributeError):
            vanished.append(name)
    assert vanished == []


def test_a_name_that_vanished_is_found():
    with pytest.raises(AttributeError):
        resolve("torch.distributed.distributed_c10d._of_another_version")


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def own_names():
    """Private names that the package itself defines: functions, classes, variables, attributes, fields."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used_names():
    """Private names that the package reads of objects, or imports."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("fdistill"):
            yield from (part for part in node.module.split(".") if private(part))
            yield from (alias.name for alias in node.names if private(alias.name))


def test_no_other_private_name_is_used():
    listed = {part for name in USED for part in name.split(".")}
    assert set(used_names()) - set(own_names()) - listed == set()


def test_every_library_with_private_names_in_use_has_an_upper_bound():
    needed = {re.match(r"[\w-]+", one).group(): one for one in tomllib_dependencies()}
    for library in {name.split(".")[0] for name in USED}:
        assert "<" in needed[library], needed[library]


def tomllib_dependencies():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
