"""The one reader of YAML: every command takes the same file to mean the same, and says in which line it does not.

Values are those of YAML 1.2: true and false are the only truth values, 1e-3 is a number, 1:30 is a text. What YAML 1.1
reads otherwise where nobody expects it is refused: yes, no, on, off, and whole numbers that begin with 0.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

_NUMBERS = {
    "int": re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_TWO_MEANINGS = re.compile(r"(?:yes|no|on|off)$|[-+]?0[0-9_]+$", re.IGNORECASE)
_TAG = "tag:yaml.org,2002:"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values alone."""

    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag.removeprefix(_TAG) in ("null", "merge")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is there twice, of which the last would win."""
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                twice = f"the key {key.value} is there twice; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_ambiguous(self, node: yaml.ScalarNode) -> Any:
        """Refuse it."""
        instead = "true or false" if node.value.isalpha() else "a number without a 0 before it"
        problem = f"{node.value} means different things to different readers: write {instead}, or '{node.value}'"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("!ambiguous", _TWO_MEANINGS, list("yYnNoO0-+"))
for _name, _rule in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _rule, list("-+0123456789."))
_Loader.add_constructor("!ambiguous", _Loader.construct_ambiguous)


class _Dumper(yaml.SafeDumper):
    """Writes texts so that readers of YAML 1.1 and 1.2 take them for texts."""

    yaml_implicit_resolvers = {
        first: [rule for reader in (yaml.SafeLoader, _Loader) for rule in reader.yaml_implicit_resolvers.get(first, [])]
        for first in {*yaml.SafeLoader.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


def is_ambiguous(text: str) -> bool:
    """Whether a value without quotes means different things to different readers."""
    return bool(_TWO_MEANINGS.match(text.strip()))


def yaml_of(values: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads as the same, in the order of `values`."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; None of an empty one.

    Raises:
        yaml.YAMLError: as the parser says it; `read_yaml` says it in one line.
    """
    return yaml.load(text, _Loader)


def read_yaml(path: str | Path, text: str | None = None) -> Any:
    """Plain values of a YAML file.

    Args:
        path: of the file.
        text: its content, where it was read already.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: in one line with the number of the line, where it is none, or holds nothing or several documents.
    """
    given = yaml_text(path) if text is None else text
    try:
        content = parse_yaml(given)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}"
        lines = given.splitlines()
        line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
        raise ValueError(f"{path} is no valid YAML{place}: {_said(error, line)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # characters, numbers or depths that nobody can read
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise ValueError(f"{path} is empty: expected YAML with values, got none; write them, or leave the file out")
    return content


def yaml_text(path: str | Path) -> str:
    """The characters of a YAML file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: in one line, where it is not UTF-8.
    """
    raw = Path(path).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is no valid YAML, line {line}: expected UTF-8, got the byte {raw[error.start]:#04x}; save it so"
        ) from error


def _said(error: yaml.MarkedYAMLError, line: str) -> str:
    problem = " ".join(filter(None, (error.context, error.problem)))
    if "another document" in problem:
        return "expected one document, got another one after ---; keep one of them"
    if "cannot start any token" in problem and "\t" in line:
        return "expected blanks, got a tab; indent with blanks"
    return " ".join(problem.split())
