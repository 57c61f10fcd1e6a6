"""What a sample is conditioned on: named tensors, batch first; class labels are the simplest case."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fdistill.core.private_apis import register_pytree

LABELS = "labels"
"""Name of the class numbers of a network with one set of classes."""


class Entry(NamedTuple):
    """What a network takes under one name.

    Attributes:
        shape: of one sample's tensor; None stands for a length that may differ, as of a prompt's tokens.
        dtype: of the tensor.
        classes: of a class number, which lies in [0, classes]; `classes` itself means "no class". 0 for other tensors.
    """

    shape: tuple[int | None, ...] = ()
    dtype: torch.dtype = torch.int64
    classes: int = 0


Takes = Mapping[str, Entry]
"""The condition that a network takes, by name; empty for an unconditional one."""


def count_classes(takes: Takes) -> int:
    """How many conditions there are: the product over its sets of classes; 0 where it takes none, or other tensors."""
    return math.prod(entry.classes for entry in takes.values()) if takes else 0


def takes_classes(num_classes: int | Mapping[str, int]) -> dict[str, Entry]:
    """The declaration of a network of classes: one set named "labels", several by their names, none for 0.

    Raises:
        ValueError: for a negative count, or a name that is no word.
    """
    named = {LABELS: num_classes} if isinstance(num_classes, int) else num_classes
    wrong = {name: count for name, count in named.items() if count < 0 or not name.isidentifier()}
    if wrong:
        raise ValueError(f"sets of classes have a word for their name and a number of classes >= 0: got {wrong}")
    return {name: Entry(classes=count) for name, count in named.items() if count}


def fits(takes: Takes, given: Takes) -> bool:
    """Whether a network that takes this can be given that: nothing at all, or the same names, classes and kinds.

    A length that one of them leaves open fits every length.
    """
    if not takes:
        return True
    return takes.keys() == given.keys() and all(_same(entry, given[name]) for name, entry in takes.items())


def _same(one: Entry, other: Entry) -> bool:
    kind = (one.classes, len(one.shape), one.dtype.is_floating_point)
    return kind == (other.classes, len(other.shape), other.dtype.is_floating_point) and all(
        a == b or None in (a, b) for a, b in zip(one.shape, other.shape, strict=True)
    )


class Condition(Mapping[str, Tensor]):
    """Named tensors of one batch, each [B, ...]; immutable. The empty condition, of no names, fits every batch.

    A pytree, so that `torch.export`, sharded modules and data loaders see its tensors.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, Tensor] = {}) -> None:
        """Raises:
        ValueError: where tensors hold different numbers of samples.
        """
        self._tensors = dict(tensors)
        shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}
        first = next(iter(shapes.values()), ())
        if any(not shape or shape[0] != first[0] for shape in shapes.values()):
            raise ValueError(f"the tensors of a condition are batch first and of one batch: got shapes {shapes}")

    @classmethod
    def of(cls, value: "Conditioned", takes: Takes) -> "Condition":
        """What users give, as a network with this declaration takes it.

        A condition as it is; class numbers int64 [B] by `of_numbers`; None as the empty condition.
        """
        if isinstance(value, Condition):
            return value
        return cls() if value is None else cls.of_numbers(takes, value)

    @classmethod
    def of_numbers(cls, takes: Takes, numbers: Tensor) -> "Condition":
        """The conditions with these numbers int64 [B], counted as `count_classes` does; the last set runs fastest.

        With one set of classes they are its classes. Nothing where the declaration has other tensors than classes.
        """
        if not count_classes(takes):
            return cls()
        (slowest, _), *others = takes.items()
        found = {}
        for name, entry in reversed(others):
            found[name] = numbers % entry.classes
            numbers = numbers // entry.classes
        found[slowest] = numbers
        return cls({name: found[name] for name in takes})

    def numbers(self, takes: Takes) -> Tensor:
        """The class numbers int64 [B] that `of_numbers` would make these conditions of."""
        counted: Any = 0
        for name, entry in takes.items():
            counted = counted * entry.classes + self[name]
        return counted

    def groups(self) -> Tensor | None:
        """int64 [B], equal for samples of equal classes; None where there are none, or other tensors than classes."""
        if not self or any(value.ndim > 1 or value.is_floating_point() for value in self.values()):
            return None
        first, *others = self.values()
        return torch.stack([first, *others], 1).unique(dim=0, return_inverse=True)[1] if others else first

    def check_classes(self, takes: Takes) -> None:
        """Raises ValueError for a class number outside [0, classes)."""
        for name, entry in takes.items():
            if entry.classes:
                check_classes(self[name], entry.classes, name)

    @classmethod
    def cat(cls, parts: Sequence["Condition"]) -> "Condition":
        """The batches of several conditions one after the other; tokens are padded as `_padded` does.

        Raises:
            ValueError: where they have different names, or different numbers of tokens without a mask.
        """
        first, *others = parts
        for other in others:
            if other.keys() != first.keys():
                raise ValueError(f"conditions of one network have the same names: got {list(first)} and {list(other)}")
        parts = _padded(parts)
        return cls({name: torch.cat([part[name] for part in parts]) for name in first})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        """The number of names; the number of samples is `length`."""
        return len(self._tensors)

    def __str__(self) -> str:
        return ", ".join(self) or "no condition"

    def __repr__(self) -> str:
        shapes = {name: f"{str(value.dtype)[6:]} {list(value.shape)}" for name, value in self.items()}
        return f"Condition({shapes})"

    @property
    def length(self) -> int | None:
        """The number of samples; None for the empty condition, which has none of its own."""
        return next((value.shape[0] for value in self.values()), None)

    def only(self, names: Mapping[str, Any]) -> "Condition":
        """The tensors of these names, as far as there are such."""
        return Condition({name: self[name] for name in names if name in self})

    def rows(self, index: slice | Tensor) -> "Condition":
        """The samples of a slice, of indices int64, or of a mask."""
        return Condition({name: value[index] for name, value in self.items()})

    def split(self, size: int) -> Iterator["Condition"]:
        """Parts of `size` samples, in order; without end for the empty condition."""
        start = 0
        while self.length is None or start < self.length:
            yield self.rows(slice(start, start + size))
            start += size

    def repeat(self, times: int) -> "Condition":
        """Each sample `times` times, one after the other: [B * times, ...]."""
        return Condition({name: value.repeat_interleave(times, dim=0) for name, value in self.items()})

    def where(self, mask: Tensor, other: "Condition") -> "Condition":
        """The samples of `other` where the mask [B] is true, this one's elsewhere; tokens are padded as `_padded` does.

        Args:
            mask: bool [B].
            other: of the same names, of B samples or one.

        Raises:
            ValueError: where they have different numbers of tokens without a mask.
        """
        own, other = _padded([self, other.only(self)])
        mixed = {}
        for name, value in own.items():
            wide = mask.reshape(-1, *[1] * (value.ndim - 1))
            mixed[name] = torch.where(wide, other[name], value)
        return Condition(mixed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Condition":
        """The same on a device."""
        return Condition({name: value.to(device, non_blocking=non_blocking) for name, value in self.items()})

    def check(self, takes: Takes, length: int) -> None:
        """Raises ValueError where this lacks what a network takes for so many samples; other names are not read."""
        if not takes.keys() <= self.keys():
            raise ValueError(f"this network takes {', '.join(takes)} for each sample: got {self}; give what lacks")
        if self.length not in (None, length):
            raise ValueError(f"a condition holds one row per sample: expected {length}, got {self.length}")
        for name, (shape, dtype, _) in takes.items():
            value = self[name]
            fits = value.ndim == 1 + len(shape) and all(
                want in (None, got) for want, got in zip(shape, value.shape[1:], strict=True)
            )
            if not fits or value.is_floating_point() != dtype.is_floating_point:
                raise ValueError(
                    f"this network takes {name} of shape [{length}, {', '.join(str(s or 'any') for s in shape)}] and "
                    f"type {dtype}: got {list(value.shape)} and {value.dtype}"
                )


def _padded(conditions: Sequence[Condition]) -> Sequence[Condition]:
    """Conditions with as many tokens (axis 1) as the longest: zeros after them, also of the mask, so that none counts.

    Raises:
        ValueError: where there are different numbers of tokens and no mask, which is int64 [B, tokens].
    """
    longest = {
        name: max(each[name].shape[1] for each in conditions) for name, value in conditions[0].items() if value.ndim > 1
    }
    short = [name for name, tokens in longest.items() if any(each[name].shape[1] < tokens for each in conditions)]
    if not short:
        return conditions
    if not any(conditions[0][name].ndim == 2 and not conditions[0][name].is_floating_point() for name in short):
        sizes = {name: [each[name].shape[1] for each in conditions] for name in short}
        raise ValueError(
            f"conditions of different lengths are joined where a mask says which tokens count: got {sizes} without; "
            "encode prompts to one length"
        )

    def padded(name: str, value: Tensor) -> Tensor:
        missing = longest[name] - value.shape[1] if name in short else 0
        return functional.pad(value, (0, 0) * (value.ndim - 2) + (0, missing)) if missing else value

    return [Condition({name: padded(name, value) for name, value in each.items()}) for each in conditions]


def check_classes(numbers: Tensor, count: int, name: str = LABELS) -> None:
    """Raises ValueError where a class number is outside [0, count)."""
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        what = "a class label" if name == LABELS else f"{name}, a class number,"
        raise ValueError(f"{what} lies in [0, {count}): got {int(outside[0])}")


def declared(takes: Takes) -> str:
    """A declaration in words: "labels (10 classes)", "digit (10 classes) and ground (4 classes)", "no condition"."""
    said = [f"{name} ({_kind(entry)})" for name, entry in takes.items()]
    return " and ".join(said) if said else "no condition"


def _kind(entry: Entry) -> str:
    return f"{entry.classes} classes" if entry.classes else f"[{', '.join(str(s or 'any') for s in entry.shape)}]"


Conditioned = Condition | Tensor | None
"""A condition, or class numbers int64 [B], or nothing; `Condition.of` makes a condition of it."""


def _rebuilt(values: Any, names: Any) -> Condition:
    # a pytree may hold things that are no tensors, as while torch exports: nothing is checked
    condition = Condition.__new__(Condition)
    condition._tensors = dict(zip(names, values, strict=True))
    return condition


register_pytree(
    Condition, lambda condition: (list(condition.values()), list(condition)), _rebuilt, "fdistill.Condition"
)
