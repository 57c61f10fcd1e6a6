"""Pickles in the documented format of EDM's persistence, written by classes of our own, and networks to put in them."""

import importlib.util
import json
import pickle
import sys
import types
from pathlib import Path

from repository import ROOT
from torch import nn

HERE = Path(__file__).parent
SCRIPT = ROOT / "tools" / "edm_reference.py"


class EasyDict(dict):
    __module__, __qualname__ = "dnnlib.util", "EasyDict"


def rebuilt(meta):
    """Stands for the function that runs the source text in a pickle."""
    raise AssertionError("a persistent object was rebuilt")


rebuilt.__module__, rebuilt.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


class Persistent:
    """An object that pickles itself with its class's name and the source text of its module."""

    def __init__(self, name, state, source="raise SystemExit"):
        self.name, self.state, self.source = name, state, source

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name, "state": self.state}
        return rebuilt, (meta,), None


def write(monkeypatch, path, content, protocol=4):
    """Pickle `content` where the names of EDM's modules can be looked up."""
    for module, name, value in (
        ("dnnlib.util", "EasyDict", EasyDict),
        ("torch_utils.persistence", "_reconstruct_persistent_obj", rebuilt),
    ):
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, value)
        monkeypatch.setitem(sys.modules, module, stand_in)
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def module_state(weights, **attributes):
    """The state of a module with these tensors by dotted name; inner ones are persistent, enc and dec ModuleDicts."""
    own = {name: value for name, value in weights.items() if "." not in name}
    inner = {}
    for name, value in weights.items():
        if "." in name:
            head, rest = name.split(".", 1)
            inner.setdefault(head, {})[rest] = value
    buffers = {name: value for name, value in own.items() if name in ("freqs", "phases", "resample_filter")}
    return {
        "training": False,
        "_parameters": {name: nn.Parameter(value) for name, value in own.items() if name not in buffers},
        "_buffers": buffers,
        "_non_persistent_buffers_set": set(),
        "_modules": {name: as_module(name, below) for name, below in inner.items()},
        **attributes,
    }


def as_module(name, weights):
    if name not in ("enc", "dec"):
        return Persistent("Layer", module_state(weights))
    container = nn.ModuleDict()
    container.__dict__.update(module_state(weights))
    return container


def script():
    """tools/edm_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("edm_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases():
    """The recorded cases by name."""
    found = {}
    for file in ("edm_reference.json", "edm2_reference.json"):
        found |= json.loads((HERE / file).read_text(encoding="utf-8"))
    del found["made_by"]
    return found


def weights_of_case(case, half=False):
    """The state dict of the whole network of a case, by the rule that its reference was computed with."""
    rule = script().tensor_of_rule
    weights = {}
    for shape, names in case["names_of_shape"].items():
        sizes = [int(size) for size in shape.split(",") if size]
        weights |= {name: rule(name, sizes) for name in names.split()}
    return {name: value.half() for name, value in weights.items()} if half else weights


def network_of_case(case, weights, **arguments):
    """The network of a case as it stands under "ema" in a snapshot; arguments replace some of its own."""
    inner = case["inner"] + "."
    within = {name.removeprefix(inner): value for name, value in weights.items() if name.startswith(inner)}
    beside = {name: value for name, value in weights.items() if not name.startswith(inner)}
    built_with = {"_init_args": (), "_init_kwargs": {**case["inner_arguments"], **arguments}}
    ema = Persistent(case["class"], module_state(beside, **case["state"]))
    ema.state["_modules"][case["inner"]] = Persistent(case["inner_class"], module_state(within, **built_with))
    return ema
