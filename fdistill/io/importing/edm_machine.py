"""A pickle read as data: the stack machine of its opcodes, in which nothing of Python is imported, called or built.

`pickletools.genops` splits the file into opcodes; the machine knows those that protocol 2 to 5 write for plain data and
objects, and refuses all others (extension registry, persistent ids, old-style instances, out-of-band buffers).
"""

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Refused(ValueError):
    """Something in the pickle that is never read; the message says what."""


@dataclass(frozen=True)
class Recipe:
    """What answers a call of a global name: a function of ours, never the thing that the name stands for."""

    answer: Callable[..., Any]


class Buildable(ABC):
    """An object of ours that takes the state which the pickle gives it."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Hold the state.

        Raises:
            ValueError: where it has the wrong form.
        """


def run(stream: Any, known: Callable[[str, str], Any], referred: Callable[[Any], Any] | None = None) -> Any:
    """The value that a pickle describes; the stream is left right after it.

    Args:
        stream: a binary file, at the start of the pickle.
        known: what stands for a global, from its module and name: a `Recipe` or a plain value; it raises for others.
        referred: what stands for a persistent id; None where there must be none.

    Raises:
        Refused: at an opcode or an object that is never read.
        ValueError, TypeError, LookupError: where the file is truncated, no pickle, or gives a recipe other arguments.
    """
    machine = _Machine(known, referred)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count == _MOST:
            raise Refused(f"more than {_MOST:,} opcodes")
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return value


_MOST = 200_000  # opcodes; each tensor of a network takes about 70
_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack, the marks below it and the memo."""

    def __init__(self, known: Callable[[str, str], Any], referred: Callable[[Any], Any] | None) -> None:
        self.known, self.referred = known, referred
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _PUSHED:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in _TUPLES:
            push(tuple(self._pop(_TUPLES[name])))
        else:
            action = getattr(self, f"_op_{name.lower()}", None)
            if action is None:
                raise Refused(f"the opcode {name}")
            action(argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise LookupError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _op_proto(self, _: int) -> None:
        pass

    def _op_frame(self, _: int) -> None:
        pass

    def _op_stop(self, _: None) -> None:
        pass

    def _op_mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _op_pop_mark(self, _: None) -> None:
        self._since_mark()

    def _op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _op_long_binput = _op_binput

    def _op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _op_long_binget = _op_binget

    def _op_tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _op_frozenset(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(frozenset(map(_key, items)))

    def _op_append(self, _: None) -> None:
        self._extend(self._pop(1))

    def _op_appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        _of_type(self.stack[-1], list).extend(items)

    def _op_additems(self, _: None) -> None:
        items = self._since_mark()
        _of_type(self.stack[-1], set).update(map(_key, items))

    def _op_setitem(self, _: None) -> None:
        self._update(self._pop(2))

    def _op_setitems(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        _of_type(self.stack[-1], dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _op_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(self.known(module, name))

    def _op_stack_global(self, _: None) -> None:
        module, name = self._pop(2)
        self.stack.append(self.known(_of_type(module, str), _of_type(name, str)))

    def _op_reduce(self, _: None) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, Recipe):
            raise Refused(f"a call of a {type(function).__name__}")
        self.stack.append(function.answer(*_of_type(arguments, tuple)))

    _op_newobj = _op_reduce

    def _op_binpersid(self, _: None) -> None:
        if self.referred is None:
            raise Refused("a reference to something outside the file")
        self.stack.append(self.referred(*self._pop(1)))

    def _op_build(self, _: None) -> None:
        (state,) = self._pop(1)
        target = self.stack[-1]
        if type(target) is dict:  # attributes of an OrderedDict or EasyDict, which no weight depends on
            return
        if not isinstance(target, Buildable):
            raise Refused(f"a state for a {type(target).__name__}")
        target.build(state)


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _key(value: Any) -> Any:
    """A key of a dict or set: hashing nested tuples takes a time exponential in their depth."""
    if type(value) not in (str, int):
        raise Refused(f"a {type(value).__name__} as a key")
    if type(value) is int and not abs(value) < 2**32:  # hashes of larger ones can be made to collide
        raise Refused("an integer of more than 32 bits as a key")
    return value
