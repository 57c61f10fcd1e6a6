"""The parser's nested reasons as one line: what is wrong, where, what was expected, and the nearest right name."""

import collections.abc
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from fdistill.core.spec import subclasses

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'|Option '([^']+)' is not accepted")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: --?([^\s=]+)|unrecognized arguments: (\S+)")
_MISSING = re.compile(r"the following arguments are required: (.*?)(?= - Expected| Given value|\. Got value|$)")
_NO_FILE = re.compile(r'Parser key "(?:\w+\.)?config": (?:- )?File does not exist: \'([^\']+)\'')
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (?P<name>\S+)"
    r"|module '(?P<module>[\w.]+)' has no attribute '(?P<attribute>\w+)'"
    r"|No module named '(?P<missing>[\w.]+)'"
    r"|Import path (?P<path>\S+) does not"
    r"|Expected an instantiatable class, but (?P<abstract>\S+) is"
    r"|Expected an instantiatable class, but is abstract|Unexpected import path format: (?P<call>\S+)"
)
_NO_CONTENT = re.compile(r"Problem with given class_path '([^']+\.(?:ya?ml|json))'")
_NOT_OF_TYPE = re.compile(r"Expected an? (?:<class '(?P<name>[\w.]+)'>|typing\.Literal\[(?P<choices>[^\]]*)\])")
_VALUE = re.compile(r"(?:Got|Given) value: (.*?)(?= - Expected| - Problem|\. Got value| Given value|$)")
_NESTED = re.compile(r"val='?(.*?)'?\)$")
_INTERPOLATION = re.compile(r"Interpolation key '\.*([^']*)' not found")
_FACTORY = re.compile(r"class_path='([\w.]+)'")  # of an optimiser, which is built later and so no "given class_path"
_COMMAND = re.compile(r"^(fit|validate|test|predict)\.")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping",
    "list": "a list",
    "collections.abc.Sequence": "a list",
    "collections.abc.Iterable": "a list",
}
_MOST_NAMES = 16
_LONGEST = 400  # characters of a reason that no rule here knows


def explain(message: str, options: Mapping[str, Any]) -> str:
    """One line for a message of jsonargparse or omegaconf.

    Args:
        message: what the parser said.
        options: every option of the command by its full name, with the annotation of its type.
    """
    text = " ".join(message.split())
    for rule in (_unknown_key, _unknown_flag, _missing, _no_file, _interpolation, _no_class, _not_of_type):
        line = rule(text, options)
        if line is not None:
            return line
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."


def raised_by_class(error: BaseException) -> BaseException:
    """The outermost error of the chain that the parser did not raise itself."""
    link: BaseException | None = error
    while link is not None:
        trace = link.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None and not trace.tb_frame.f_globals.get("__name__", "").startswith("jsonargparse"):
            return link
        link = link.__cause__ or link.__context__
    return error


def _unknown_key(text: str, options: Mapping[str, Any]) -> str | None:
    found = next(
        (match for match in _UNKNOWN_KEY.finditer(text) if not _is_fallback(text[: match.start()], options)), None
    )
    if not found:
        return None
    name, before = found[1] or found[2], text[: found.start()]
    factory = _FACTORY.search(text, found.end()) if before.endswith("callable class: ") else None
    owner = _imported(factory[1]) if factory else _last_class(before)
    if owner is None:
        return f"there is no option {name}{_did_you_mean(name, options)}"
    known = [option for option in inspect.signature(owner).parameters if not factory or option != "params"]
    inside = _inside(owner, name)
    remedy = f"; did you mean {inside}?" if inside else choices(name, known) if known else ": it takes none"
    return f"{_path(before)} ({owner.__name__}) has no option {name}{remedy}"


def _unknown_flag(text: str, options: Mapping[str, Any]) -> str | None:
    found = _UNKNOWN_FLAG.search(text)
    if not found:
        return None
    if found[2]:
        return f"unexpected argument {found[2]!r}: every value follows the name of its option"
    return f"there is no option --{found[1]}{_did_you_mean(found[1], options)}"


def _missing(text: str, options: Mapping[str, Any]) -> str | None:
    found = _MISSING.search(text)
    if not found:
        return None
    owner, where = _last_class(text[: found.start()]), _path(text[: found.start()])
    names = [_COMMAND.sub("", name.strip()) for name in found[1].split(",")]
    if owner is not None:
        return f"{where} ({owner.__name__}) needs {', '.join(names)}: set in YAML, or by --{where}.{names[0]} VALUE"
    remedy = ": give --config FILE, one that names the classes" if {"model", "data"} & set(names) else ""
    return f"missing: {', '.join(sorted(names))}{remedy}"


def _no_file(text: str, options: Mapping[str, Any]) -> str | None:
    named = _NO_FILE.search(text)
    found = named or _NO_CONTENT.search(text)
    if not found:
        return None
    remedy = ", or give a name that fdistill presets lists" if named else ""
    return f"there is no configuration file {found[1]}: check the path{remedy}"


def _interpolation(text: str, options: Mapping[str, Any]) -> str | None:
    place = _FULL_KEY.search(text)
    if place is None:
        return None
    where = _COMMAND.sub("", place[1]).replace("init_args.", "")
    found = _INTERPOLATION.search(text)
    if found:
        return f"{where} refers to ${{{found[1]}}}, which no file and no option sets: correct the name or set it"
    return f"{where} is no readable ${{...}} reference: {text[: place.start()].strip()}"


def _no_class(text: str, options: Mapping[str, Any]) -> str | None:
    found = _NO_CLASS.search(text)
    if not found or _accepts_numbers(text[: found.start()]):
        return None
    before = text[: found.start()]
    if found["call"]:
        name = found["call"].split("(")[0]
        return f"{_path(before)} is a class: got {found['call']}; give {name} alone, each argument as its own option"
    value = _VALUE.search(text)
    is_abstract = "instantiatable" in found[0]
    given = (
        found["name"] or found["missing"] or found["path"] or found["abstract"] or (is_abstract and value and value[1])
    )
    name = (given or f"{found['module']}.{found['attribute']}").strip("'\".,")
    bases = _bases(before, options)
    known = sorted({c.__name__ for base in bases for c in _concrete(base)} - {base.__name__ for base in bases})
    what = " or ".join(sorted({base.__name__ for base in bases})) or "class"
    problem = "is abstract" if is_abstract else f"is no {what} known here"
    nearest = choices(name.rsplit(".", 1)[-1], known) if known else ""
    return f"{_path(before) or 'class_path'}: {name} {problem}{nearest}; for a class of your own add --import MODULE"


def _not_of_type(text: str, options: Mapping[str, Any]) -> str | None:
    found = [match for match in _NOT_OF_TYPE.finditer(text) if match["name"] != "NoneType"]
    if not found:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    kinds = dict.fromkeys(f"one of {m['choices']}" if m["choices"] else _KINDS.get(m["name"], m["name"]) for m in found)
    for base in filter(inspect.isabstract, _bases(before, options)):  # a number or a schedule, say
        kinds[f"a {base.__name__} ({', '.join(sorted(c.__name__ for c in _concrete(base)))})"] = None
    value = _VALUE.search(after)
    got = "" if value is None else value[1]
    if "NestedArg(" in got and (nested := _NESTED.search(got)):
        got = nested[1]
    got = got if len(got) <= 80 else got[:80] + " ..."
    return f"{_path(before) or 'this option'} is {' or '.join(kinds)}: got {got or 'something else'}"


def _path(before: str) -> str:
    """The full name of the option that a reason is about, from the parser keys that enclose it."""
    return ".".join(_KEY.findall(before)).replace("init_args.", "")


def _last_class(before: str) -> type | None:
    paths = _CLASS.findall(before)
    return _imported(paths[-1]) if paths else None


def _is_fallback(before: str, options: Mapping[str, Any]) -> bool:
    """Whether an option was refused by the bare base class, which the parser tries after the class that was named."""
    named, owner = _CLASS.findall(before), _last_class(before)
    return len(named) > 1 and owner in _classes(options.get(_KEY.findall(before)[0]))


def _inside(owner: type, name: str) -> str | None:
    """The option of `owner` whose classes take `name`, as option.name; None where there is none."""
    for option, annotation in _hints(owner).items():
        families = filter(inspect.isabstract, _classes(annotation))
        if any(name in inspect.signature(found).parameters for base in families for found in _concrete(base)):
            return f"{option}.{name}"
    return None


def _hints(owner: type) -> dict[str, Any]:
    """The annotations of a class's arguments; none where they cannot be resolved."""
    try:
        return typing.get_type_hints(owner.__init__)  # type: ignore[misc]  # a class of its own, not an instance
    except (NameError, TypeError):
        return {}


def _imported(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None)  # the parser has imported it already


def _accepts_numbers(before: str) -> bool:
    subtypes = before.rpartition("Subtypes: [")[2].split("] Errors:")[0]
    return "<class 'float'>" in subtypes or "<class 'int'>" in subtypes


def _bases(before: str, options: Mapping[str, Any]) -> list[type]:
    """The classes that the option at the end of `before` may be an instance of."""
    keys, owner = _KEY.findall(before), _last_class(before)
    if not keys:
        return []
    if owner is None:
        return _classes(options.get(keys[-1]))
    return _classes(_hints(owner).get(keys[-1].rsplit(".", 1)[-1]))


def _classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return [] if annotation.__module__ == "builtins" else [annotation]
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is collections.abc.Callable:
        arguments = arguments[-1:]
    return [found for argument in arguments for found in _classes(argument)]


def _concrete(base: type) -> list[type]:
    """`base` and all of its imported subclasses that can be built, without private ones."""
    known = (base, *subclasses(base))
    return [found for found in known if not (inspect.isabstract(found) or found.__name__.startswith("_"))]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choices(name: str, known: list[str]) -> str:
    """How an error line about a name goes on: the nearest one, and all of them, or a few where they are many."""
    few = len(known) <= _MOST_NAMES
    listed = ", ".join(known if few else [*difflib.get_close_matches(name, known, n=8, cutoff=0.0), "..."])
    return f"{_did_you_mean(name, known) or ':'} expected one of {listed}"
