"""The rules of the house, read from the source: imports go downstairs, files stay short, nothing is unpickled."""

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fdistill"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

ROOMS = ("core", "theory", "models", "sampling", "io", "data", "evaluation", "objectives", "training", "serving", "cli")
"""From the ground up: each imports itself and those before it."""
FLOOR = {room: floor for floor, room in enumerate(ROOMS)}
MAY_PRINT = ("cli", "evaluation/report")


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def imports(path):
    """The fdistill modules a file imports, at its top or inside a function."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fdistill")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            if node.module.split(".")[0] == "fdistill":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else node.module


EDGES = [(name_of(path), target) for path in FILES for target in imports(path)]


def cycle(edges):
    """Some cycle of a directed graph, or None."""
    after = {}
    for source, target in edges:
        if source != target:
            after.setdefault(source, set()).add(target)
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        trail.append(node)
        found = next(filter(None, map(visit, sorted(after.get(node, ())))), None)
        trail.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(after))), None)


def test_there_are_eleven_rooms_and_no_loose_module():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__"}


def test_each_room_says_what_it_is_for_and_what_it_may_import():
    for room, below in zip(ROOMS, (None, *ROOMS), strict=False):
        first = ast.get_docstring(TREES[PACKAGE / room / "__init__.py"]).splitlines()[0]
        says = {None: "no other room", ROOMS[-2]: "every other room"}.get(below, f"imports {below}")
        assert says in first, room


def test_imports_go_downstairs_or_stay_on_the_floor():
    inside = [(a, b) for a, b in EDGES if room_of(a) in FLOOR and b != PACKAGE.name]
    assert [(a, b) for a, b in inside if FLOOR[room_of(b)] > FLOOR[room_of(a)]] == []


def test_rooms_do_not_import_each_other_in_a_circle():
    assert cycle((room_of(a), room_of(b)) for a, b in EDGES if room_of(a) and room_of(b)) is None


def test_files_do_not_import_each_other_in_a_circle():
    assert cycle(EDGES) is None


def test_cycles_are_found():
    assert cycle([("a", "b"), ("b", "c"), ("d", "b")]) is None
    assert cycle([("a", "b"), ("b", "c"), ("c", "b")]) == ["b", "c", "b"]


def test_there_is_no_drawer_for_everything():
    assert [path.name for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


PICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@functools.cache
def every_node():
    """By kind, every node of the package that has a place, after this place."""
    found = {}
    for path, tree in TREES.items():
        file = path.relative_to(PACKAGE)
        for node in ast.walk(tree):
            if hasattr(node, "lineno"):
                found.setdefault(type(node), []).append((f"{file}:{node.lineno}", node))
    return found


def nodes(kind):
    """Every node of a kind in the package, after the place it is at."""
    return every_node()[kind]


def dotted(node):
    """a.b.c of names and attributes; nothing of all else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_files_are_short_and_say_in_their_first_line_what_they_are():
    sources = {path: path.read_text(encoding="utf-8") for path in FILES}
    assert [path.name for path, source in sources.items() if len(source.splitlines()) > 350] == []
    assert [str(path) for path, source in sources.items() if source and not ast.get_docstring(TREES[path])] == []


def test_functions_are_short():
    lengths = {place: node.end_lineno - node.lineno + 1 for place, node in nodes(ast.FunctionDef)}
    assert {place: length for place, length in lengths.items() if length > 70} == {}


def test_public_classes_and_functions_have_docstrings():
    top = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [n.name for n in top if not n.name.startswith("_") and not ast.get_docstring(n)] == []


def test_nothing_copies_a_whole_split():
    asked = [place for place, node in nodes(ast.Attribute) if node.attr == "copied"]
    assert asked == [], "ask for rows, or stream batches"


def test_torch_loads_weights_only():
    loads = {place: node.keywords for place, node in nodes(ast.Call) if dotted(node.func) == "torch.load"}
    assert loads, "nothing loads a checkpoint any more: drop this test"
    safe = {place for place, keys in loads.items() if any(ast.unparse(key) == "weights_only=True" for key in keys)}
    assert set(loads) - safe == set()
    assert [p for p, k in nodes(ast.keyword) if k.arg == "weights_only" and ast.unparse(k.value) != "True"] == []


def test_nothing_is_unpickled():
    imported = [(p, alias.name.split(".")[0]) for p, node in nodes(ast.Import) for alias in node.names]
    imported += [(place, node.module.split(".")[0]) for place, node in nodes(ast.ImportFrom)]
    assert [(place, name) for place, name in imported if name in PICKLING - {"pickle"}] == []
    assert [place for place, node in nodes(ast.ImportFrom) if node.module == "pickle"] == []
    used = [(p, node.attr) for p, node in nodes(ast.Attribute) if dotted(node.value) == "pickle"]
    assert {name for _, name in used} <= {"UnpicklingError", "Unpickler"}  # an error, and a class to derive from
    readers = [node for _, node in nodes(ast.ClassDef) if "pickle.Unpickler" in map(dotted, node.bases)]
    assert [name for _, name in used].count("Unpickler") == len(readers)
    listed = [[part.name for part in node.body if isinstance(part, ast.FunctionDef)] for node in readers]
    assert all("find_class" in names for names in listed)  # else it would import whatever a file names


def test_only_the_front_door_prints():
    places = [place for place, node in nodes(ast.Call) if dotted(node.func) == "print"]
    assert [place for place in places if not place.startswith(MAY_PRINT)] == []
