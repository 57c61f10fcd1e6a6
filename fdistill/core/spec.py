"""Objects that remember how they were built: a checkpoint rebuilds them from plain values, never from pickle."""

import functools
import inspect
import sys
from typing import Any, Self

from fdistill.core.moved_names import todays_name

Spec = dict[str, Any]


class Described:
    """Base of every component that a checkpoint must be able to rebuild (networks, preconditionings, paths).

    The arguments of the outermost ``__init__`` are recorded. `spec` returns them as plain values and `from_spec` builds
    an equal object. Only classes that Python has already imported are looked up: a file cannot cause an import.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def spec(self) -> Spec:
        """Class path and constructor arguments as str, int, float, bool, None, list and dict only."""
        # FSDP2 puts a class of its own over that of a sharded network
        written = next(cls for cls in type(self).__mro__ if not cls.__module__.startswith("torch."))
        return {"class_path": public_path(written), "init_args": plain(self.__dict__.get("_init_args", {}))}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build the object that `spec` describes.

        Raises:
            ValueError: if the description names no known subclass of this class or arguments it does not take.
        """
        return build(cls, spec)


def build(base: type, spec: Spec) -> Any:
    """The object of a class below `base` that a description names; objects among its arguments are built first.

    They may lie in lists and dicts. Only classes that Python has already imported are looked up.

    Raises:
        ValueError: if the description names no known subclass of `base` or arguments it does not take.
    """
    if not (_has_form(spec) and isinstance(spec["class_path"], str) and isinstance(spec["init_args"], dict)):
        raise ValueError(f"a {base.__name__} is described by class_path and init_args: got {spec!r}")
    found = {public_path(sub): sub for sub in (base, *subclasses(base)) if sub is not Described}
    found = {path: sub for path, sub in found.items() if not inspect.isabstract(sub)}
    path = todays_name(spec["class_path"])
    if path not in found:
        known = ", ".join(sorted(name.rpartition(".")[2] for name in found))
        raise ValueError(
            f"{spec['class_path']!r} is no {base.__name__} that is imported here: expected one of {known}; "
            "import the module that defines it first (--import MODULE)"
        )
    arguments = {name: _built(value) for name, value in spec["init_args"].items()}
    _check_plain(found[path], arguments)
    try:
        return found[path](**arguments)
    except TypeError as error:
        raise ValueError(f"{spec['class_path']} does not take these arguments: {error}") from error


def _check_plain(cls: type[Any], arguments: dict[str, Any]) -> None:
    """Raises ValueError where a class asks for a number, a text or a truth value and is given something else."""
    for name, parameter in inspect.signature(cls).parameters.items():
        kind = parameter.annotation
        if name not in arguments or kind not in (bool, int, float, str):
            continue
        value = arguments[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number if kind in (int, float) else isinstance(value, kind)):
            wanted = {bool: "true or false", str: "a text"}.get(kind, "a number")
            raise ValueError(f"{name} of {cls.__name__}: expected {wanted}, got {value!r}")


def subclasses(cls: type[Any]) -> list[type[Any]]:
    """Every imported class below, abstract ones too."""
    return [found for sub in cls.__subclasses__() for found in (sub, *subclasses(sub))]


def named(base: type[Any], name: str) -> type[Any]:
    """The imported class below `base` of this bare name.

    Raises:
        ValueError: where there is none that can be built.
    """
    known = {found.__name__: found for found in subclasses(base) if not inspect.isabstract(found)}
    if name not in known:
        names = ", ".join(sorted(found for found in known if not found.startswith("_")))
        raise ValueError(f"there is no {base.__name__} {name!r}: expected one of {names}")
    return known[name]


def public_path(cls: type) -> str:
    """Of our own classes the name in the outermost package that exports it; module and name for all others."""
    module = cls.__module__.split(".")
    outer = range(2, len(module)) if module[0] == "fdistill" else ()
    packages = [".".join(module[:depth]) for depth in outer]
    exporting = [name for name in packages if getattr(sys.modules.get(name), cls.__qualname__, None) is cls]
    return f"{next(iter(exporting), cls.__module__)}.{cls.__qualname__}"


def _recording(init: Any) -> Any:
    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_init_args" not in self.__dict__:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.__dict__["_init_args"] = {name: _kept(value) for name, value in list(bound.arguments.items())[1:]}
        init(self, *args, **kwargs)

    return wrapper


def _kept(value: Any) -> Any:
    """The value as it is now: lists and dicts are copied, since their owner may go on changing them."""
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items()}
    return [_kept(item) for item in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """A value as str, int, float, bool, None, list and dict only; objects become their descriptions.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Described):
        return value.spec()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"only plain values can be described in a checkpoint: got {type(value).__name__}")


def _has_form(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"class_path", "init_args"}


def _built(value: Any) -> Any:
    if _has_form(value):
        return build(Described, value)
    if isinstance(value, dict):
        return {name: _built(item) for name, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, list) else value
