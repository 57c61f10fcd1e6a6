"""The parser's nested reasons as one line: where, what was expected, what was given, and the nearest right name.

jsonargparse says a tree by indentation: below a parser key what is wrong with that option, below a class_path what is
wrong with the arguments of that class, and a reason for each type that an option may have. The deepest reason is told.
"""

import collections.abc
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fdistill.core.spec import subclasses

_NODE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":|Problem with given class_path '(?P<cls>[^']+)':")
_FRAME = re.compile(  # lines that hold the tree together
    r"Does not validate|Subtypes: |Errors:|Given value|Not a valid subclass|Subclass types|a (class path|dict) "
    r"|Expected a path but|Expected a <class 'NoneType'>"
)
_ANOTHER_TYPE = re.compile(r"expected a |Import path \S+ does not correspond to a subclass")
_FACTORY = re.compile(r".*callable class: (?P<text>.*?)\. Got value: Namespace\((?:.*class_path='(?P<cls>[\w.]+)')?.*")
_WORDS = {
    "Expected a ": "expected a ",
    "<class 'int'>": "whole number",
    "<class 'float'>": "number",
    "<class 'bool'>": "truth value",
    "typing.Literal": "value of ",
    "dot import path string": "class known here",
    ". Got value:": ", got",
}
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_NAME = re.compile(r"--([\w.]+)|'([\w.]+)'|class known here: ([\w.]+)|^Import path ([\w.]+)")
_GIVEN = re.compile(r"Given value: (?!Namespace|NestedArg|[{\[])(.*?)(?:\. Got value.*)?$", re.MULTILINE)
_COMMAND = re.compile(r"\b(fit|validate|test|predict)\.")
_MOST_NAMES = 16
_LONGEST = 400  # characters of a reason


class _Reason(NamedTuple):
    path: str
    """Of the option, with dots."""
    text: str
    owner: type | None
    """The innermost class around it."""
    is_inside: bool
    """Whether it is about the arguments of the owner, and not about the value of one."""
    depth: int


def explain(message: str, options: Mapping[str, Any]) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: what the parser said.
        options: every option of the command by its full name, with the annotation of its type.
    """
    reasons = list(_reasons(message))
    if not reasons:
        return " ".join(message.split())
    found = max(reasons, key=lambda reason: reason.depth)  # the first: after it the parser tries a base class
    texts = [reason.text for reason in reasons if (reason.path, reason.owner) == (found.path, found.owner)]
    text = _COMMAND.sub("", " or ".join(dict.fromkeys(texts)))
    given = _GIVEN.search(message)
    if given and not text.endswith(given[1]):
        text += f", got {given[1]}"
    line = text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    where = f"{found.path} ({found.owner.__name__})" if found.owner and found.is_inside else found.path
    return f"{where}: {line}{_remedy(found, text, options)}".removeprefix(": ")


def _reasons(message: str) -> Iterator[_Reason]:
    above: list[tuple[int, str | None, str | None]] = []  # indentation, option, class
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip(" ").removeprefix("- "))
        text = " ".join(line.split()).removeprefix("- ")
        if not text or _FRAME.match(text):
            continue
        above = [node for node in above if node[0] < indent]
        while node := _NODE.search(text):
            above.append((indent, node["key"], node["cls"]))
            text = text[node.end() :].strip()
        if not text:
            continue
        factory = _FACTORY.fullmatch(text)
        own = factory["cls"] if factory and "Option " in text else None
        text = factory["text"] if factory else text
        for said, meant in _WORDS.items():
            text = text.replace(said, meant)
        text = _TYPE.sub(r"\1", text)
        path = ".".join(key for _, key, _ in above if key).replace("init_args.", "")
        classes = [name for _, _, name in above if name] + [own] * (own is not None)
        owner = _imported(classes[-1]) if classes and classes[-1] else None
        yield _Reason(path, text, owner, own is not None or bool(above and above[-1][2]), len(above))


def _remedy(reason: _Reason, text: str, options: Mapping[str, Any]) -> str:
    """How the line goes on: the nearest right name and all of them."""
    if "are required" in text:
        if reason.path:
            return f": set in YAML, or by --{reason.path}.NAME VALUE"
        return ": give --config FILE, one that names the classes" * ({"model", "data"} <= options.keys())
    names = [match[match.lastindex or 0] for match in _NAME.finditer(text)]
    name = names[-1] if names else ""
    if not reason.path:
        return _did_you_mean(name, list(options))
    if reason.is_inside and reason.owner is not None:
        inside = _inside(reason.owner, name)
        known = [name for name in inspect.signature(reason.owner).parameters if name != "params"]  # an optimiser's
        return f"; did you mean {inside}?" if inside else choices(name, known) if known else "; it takes none"
    key = reason.path.rsplit(".", 1)[-1]
    bases = _classes(_hints(reason.owner).get(key) if reason.owner else options.get(reason.path))
    families = {base.__name__ for base in bases if subclasses(base)}
    named = sorted({cls.__name__ for base in bases for cls in _concrete(base)} - families)
    return f"{choices(name.rsplit('.', 1)[-1], named)}; for a class of your own add --import MODULE" if named else ""


def raised_by_class(error: BaseException) -> BaseException:
    """The outermost error of the chain that the parser did not raise itself.

    Of an option of several types the parser chains the first type's reason alone, and has the others in its text.
    """
    link: BaseException | None = error
    while link is not None:
        trace = link.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None and not trace.tb_frame.f_globals.get("__name__", "").startswith("jsonargparse"):
            return link
        link = link.__cause__ or link.__context__
    told = [reason.text for reason in _reasons(str(error)) if not _ANOTHER_TYPE.match(reason.text)]
    return ValueError(told[0]) if told and "Union subtypes" in str(error) else error


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
    try:
        return getattr(importlib.import_module(module), name, None)  # the parser has imported it already
    except (ImportError, ValueError):  # a file in place of a class
        return None


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


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' where a known name is close, else nothing."""
    close = [] if name in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choices(name: str, known: Sequence[str]) -> str:
    """How an error line about a name goes on: the nearest one, and all of them, or a few where they are many."""
    few = len(known) <= _MOST_NAMES
    listed = ", ".join(known if few else [*difflib.get_close_matches(name, known, n=8, cutoff=0.0), "..."])
    return f"{_did_you_mean(name, known) or ':'} expected one of {listed}"
