"""Pickles of EDM are data: weights come out bit for bit, and nothing that a file says is ever run."""

import builtins
import functools
import os
import pickle
import subprocess
import tracemalloc

import numpy as np
import pytest
import torch
from edm_stand_in import EasyDict, Persistent, as_module, module_state, write
from torch import nn

from fdistill.core.weight_files import CheckpointError
from fdistill.io.importing.edm_reader import read_snapshot, weights_of

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)


@pytest.fixture
def written(tmp_path, monkeypatch):
    return lambda content, protocol=4: write(monkeypatch, tmp_path / "snapshot.pkl", content, protocol)


@pytest.fixture
def raw(tmp_path):
    """The path of a file of these bytes."""

    def of(data):
        path = tmp_path / "snapshot.pkl"
        path.write_bytes(data)
        return path

    return of


def assert_refused(path, says="."):
    with pytest.raises(CheckpointError, match=says) as raised:
        read_snapshot(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("protocol", [4, 5])
def test_the_weights_of_a_module_are_its_state_dict_bit_for_bit(written, protocol):
    module = nn.ModuleDict({"a": nn.Conv2d(2, 3, 1), "b": nn.ModuleDict({"c": nn.BatchNorm1d(4)}), "d": nn.SiLU()})
    for dtype in TYPES:
        module.register_buffer(f"of_{dtype}".replace(".", "_"), torch.tensor([0, 1, 3]).to(dtype))
    module.register_buffer("hidden", torch.zeros(3), persistent=False)
    module.register_parameter("none", None)
    base = torch.randn(4, 6)
    module.register_buffer("view", base.t()[1:3, ::2])
    module.register_buffer("number", torch.tensor(-0.0))
    snapshot = read_snapshot(written({"ema": module}, protocol))
    found, expected = weights_of(snapshot["ema"]), module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert torch.signbit(found["number"])


def test_what_stands_beside_the_network_is_plain(written):
    encoder = Persistent("Encoder", {"scale": np.float32([1, 2]), "square": np.arange(6, dtype=">i4").reshape(2, 3)})
    content = EasyDict(
        ema=as_module("ema", {"weight": torch.ones(2)}),
        encoder=encoder,
        dataset_kwargs=EasyDict(path="x", size=np.float64(0.5), many=np.int64(2**40), yes=np.bool_(True)),
        kept={"type": torch.float16, "shape": torch.Size([2, 3]), "where": torch.device("cpu"), "words": {"a", "b"}},
    )
    snapshot = read_snapshot(written(content))
    assert snapshot["dataset_kwargs"] == {"path": "x", "size": 0.5, "many": 2**40, "yes": True}
    assert snapshot["kept"] == {
        "type": torch.float16,
        "shape": (2, 3),
        "where": torch.device("cpu"),
        "words": {"a", "b"},
    }
    assert snapshot["encoder"].name == "Encoder"
    assert snapshot["encoder"].state["scale"].values.tolist() == [1, 2]
    assert snapshot["encoder"].state["square"].values.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_objects_remember_how_they_were_built_and_never_run_their_source(written, tmp_path):
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    net = Persistent("Net", module_state({}, _init_kwargs={"width": 3}), source)
    inert = read_snapshot(written({"ema": net}))["ema"]
    assert (inert.name, inert.state["_init_kwargs"]) == ("Net", {"width": 3})
    assert not (tmp_path / "ran").exists()


class Call:
    """Pickles as the result of a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self):
        """Pickle asks that what is called can be."""


CALLS = {
    "os.system": lambda path: Call(os.system, f"echo > {path}"),
    "builtins.open": lambda path: Call(builtins.open, path, "w"),
    "builtins.exec": lambda path: Call(exec, f"open({path!r}, 'w')"),
    "builtins.eval": lambda path: Call(eval, f"open({path!r}, 'w')"),
    "subprocess.run": lambda path: Call(subprocess.run, ["touch", path]),
    "builtins.getattr": lambda path: Call(Call(getattr, Call(__import__, "os"), "system"), f"echo > {path}"),
    "functools.partial": lambda path: Call(functools.partial(os.system, f"echo > {path}")),
    "torch.serialization.save": lambda path: Call(torch.save, 1, path),
    "numpy.save": lambda path: Call(np.save, path, 1),
}
PLACES = {
    "at the root": lambda call: {"ema": call},
    "beside the network": lambda call: {"ema": Persistent("Net", module_state({})), "loss_fn": [{"a": (call,)}]},
    "in the state of an object": lambda call: {"ema": Persistent("Net", {"_parameters": {"weight": call}})},
    "as the state of an object": lambda call: {"ema": Persistent("Net", call)},
    "as the name of a class": lambda call: {"ema": Persistent(call, {})},
    "as an argument of a tensor": lambda call: {"ema": Call(torch._utils._rebuild_parameter, call, False, {})},
    "as the bytes of a storage": lambda call: {"ema": Call(torch.storage._load_from_bytes, call)},
    "as the state of a module": lambda call: {"ema": Call(nn.ModuleDict, state=call)},
}


@pytest.mark.parametrize("call", CALLS)
def test_the_calls_of_these_tests_do_something_where_they_are_unpickled(call, tmp_path):
    path = tmp_path / "ran.npy"
    pickle.loads(pickle.dumps(CALLS[call](str(path))))
    assert path.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_calls_anything_is_refused_by_name_and_nothing_runs(written, tmp_path, call, place):
    path = tmp_path / "ran.npy"
    message = assert_refused(written(PLACES[place](CALLS[call](str(path)))), "executed")
    assert message.split("got the name '")[1].split("'")[0].split(".")[-1] in call
    assert not path.exists()


def frame(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"(cos\nsystem\no",
        b"}cos\nsystem\n\x93",
        text("torch.nn.modules.container") + text("os.system") + b"\x93",
        text("torch.nn") + text("modules.container.os.system") + b"\x93",
        text("torch") + text("float32.__class__") + b"\x93",
        text("torch") + text("load") + b"\x93",
        text("torch_utils.persistence") + text("exec") + b"\x93",
        b"(ios\nsystem\n",
    ],
)
def test_a_name_that_is_not_listed_is_refused(raw, body):
    assert_refused(raw(frame(body)), "executed")


def name_of(module, name):
    return text(module) + text(name) + b"\x93"


REBUILD, LOAD = name_of("torch._utils", "_rebuild_tensor_v2"), name_of("torch.storage", "_load_from_bytes")
MODULE, ARRAY = name_of("torch.nn.modules.container", "ModuleDict"), name_of("numpy", "ndarray")
CHANGE = b"}" + text("answer") + b"Ns"  # as the state of what stands before it
SLOTS = b"N" + CHANGE + b"\x86"


@pytest.mark.parametrize("name", [REBUILD, LOAD, MODULE, ARRAY, name_of("collections", "OrderedDict")])
@pytest.mark.parametrize("state", [CHANGE, SLOTS], ids=["attributes", "slots"])
def test_no_file_changes_a_function_or_a_class_of_ours(raw, name, state):
    assert_refused(raw(frame(name + state + b"b")))


@pytest.mark.parametrize(
    "body",
    [
        *(b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"),  # the extension registry
        *(b"P0\n", b"NQ", b"\x97"),  # what lies outside of the file
        *(
            b"(o",
            b"}}N\x92",
            b"})R",
            text("os") + b")R",
            b"))b",
            b"]}b",
            b"}]Ns",
            b"\x8f(]\x90",
            b"](K\x01u",
            b"}}\x93",
        ),
        *(b"0", b"b", b"t", b"K\x01K\x02", b"h\x05", b"}K\x01s", b"C\x02a"),
        b"}r\xff\xff\xff\xff",  # a place in the memo that would take 32 GB to reach
        b"(K\x01\x8e" + b"\xff" * 8,
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # nine quintillion bytes
        b"\x8d" + b"\xff" * 7 + b"\x3f",
        b"\x8b\xff\xff\xff\x7f",
        MODULE + text("touch /tmp/x") + b"\x85R",  # a module with an argument
        MODULE + b")\x81}N\x86b",  # slots
        MODULE + b")\x81NbNb",
        name_of("numpy", "dtype") + text("O8") + b"\x85R",  # objects, which are pointers
        name_of("numpy.core.multiarray", "scalar") + b"N)\x86R",
        *(LOAD + b")R", LOAD + b"C\x02PK\x85R", REBUILD + b"NK\x00))\x89}tR"),
        text("torch.Size") + text("x") + b"\x93",
    ],
)
def test_other_opcodes_and_arguments_are_refused(raw, body):
    assert_refused(raw(frame(body)))


class Tensor:
    """Pickles as a tensor with any offset, size and stride over some floats."""

    def __init__(self, offset, size, stride, storage=None):
        self.parts = (storage or torch.zeros(4).storage(), offset, size, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.parts


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (4, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (-1, 1)),
        (0, (2,), (4,)),
        (0, (2, 2), (1,)),
        (0.0, (2,), (1,)),
        (0, "ab", "cd"),
        (0, (2**63,), (1,)),
    ],
)
def test_a_tensor_lies_inside_its_storage(written, offset, size, stride):
    def read(tensor):
        return weights_of(read_snapshot(written({"ema": Persistent("Net", {"_parameters": {"w": tensor}})}))["ema"])

    assert torch.equal(read(Tensor(1, (3,), (1,)))["w"], torch.zeros(3))
    with pytest.raises(CheckpointError):
        read(Tensor(offset, size, stride))


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_storage_is_read_as_it_says_or_not_at_all(raw):
    whole = torch.arange(5.0).storage().__reduce__()[1][0]

    def of(data):
        body = text("torch.storage") + text("_load_from_bytes") + b"\x93B" + len(data).to_bytes(4, "little") + data
        return raw(frame(b"}" + text("ema") + body + b"\x85Rs"))

    assert "no snapshot of EDM" in assert_refused(of(whole))  # what it refers to is no network, and was read
    for length in [*range(0, len(whole) - 40, 5), *range(len(whole) - 40, len(whole))]:
        assert_refused(of(whole[:length]))
    assert_refused(of(whole.replace(b"FloatStorage", b"QuintStorage")))
    evil = pickle.dumps(Call(os.system, "exit 1"))
    assert_refused(of(evil))
    assert_refused(of(whole[: whole.index(b"\x80\x02}")] + evil))


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_bytes_that_are_recalled_again_and_again_do_not_fill_the_memory(raw):
    data = torch.zeros(250_000).storage().__reduce__()[1][0]
    load = text("torch.storage") + text("_load_from_bytes") + b"\x93\x94"
    stored = b"B" + len(data).to_bytes(4, "little") + data + b"\x94"
    path = raw(frame(b"(", load, stored, b"h\x00h\x01\x85R" * 2000, b"t"))
    tracemalloc.start()
    assert_refused(path, "file")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_nested_values_that_double_at_every_level_are_read_in_no_time(raw):
    pairs = b"".join(b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(200))
    assert "no snapshot" in assert_refused(raw(frame(b"()\x94", pairs, b"t")))
    assert "no snapshot" in assert_refused(raw(frame(b"]" * 20_000, b"a" * 19_999)))


def test_a_network_is_a_tree_of_modules(written):
    shared = as_module("a", {"weight": torch.zeros(1)})
    twice = Persistent("Net", {**module_state({}), "_modules": {"a": shared, "b": shared}})
    circle = Persistent("Net", {})
    circle.state["_modules"] = {"again": as_module("x", {})}
    circle.state["_modules"]["again"].state["_modules"] = {"up": 3}
    for network in (twice, circle, Persistent("Net", {"_modules": [1]}), Persistent("Net", {"_parameters": None})):
        with pytest.raises(CheckpointError, match="tree"):
            weights_of(read_snapshot(written({"ema": network}))["ema"])


def test_a_truncated_file_is_refused_wherever_it_ends(written, raw):
    whole = written({"ema": as_module("ema", {"a.weight": torch.ones(3), "b.freqs": torch.ones(2)})}).read_bytes()
    for end in [*range(0, len(whole) - 40, 7), *range(len(whole) - 40, len(whole))]:
        assert_refused(raw(whole[:end]), "truncated")


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"PK\x03\x04 a zip archive", b"<html>not found</html>", b"\x80\x04N.", b"\x80\x63N."]
)
def test_other_files_are_refused_in_one_line(raw, data):
    assert_refused(raw(data))


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    os.mkfifo(tmp_path / "a.pkl")
    assert_refused(tmp_path / "a.pkl", "file")


def test_a_missing_file_is_told(tmp_path):
    assert_refused(tmp_path / "none.pkl", "pkl")
