"""Samples of a model by a seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fdistill.models.condition import Condition, check_classes, declared
from fdistill.sampling.first_step import with_first_step_of
from fdistill.sampling.generator import GenerativeModel

Labels = int | Sequence[int] | Mapping[str, int | Sequence[int]] | None
"""Class numbers, also by the names of several sets of classes; None for all classes in turn."""


def draw(
    model: GenerativeModel,
    n: int,
    seed: int = 0,
    labels: Labels | Condition = None,
    first_step: GenerativeModel | None = None,
) -> Tensor:
    """n samples of a seed, float32 [n, *image_shape] on the CPU, images in [-1, 1].

    They are those of `fdistill sample` but for rounding.

    Args:
        model: as `load` or `distill` gives it.
        n: how many, >= 1.
        seed: of the noise, which is drawn on the CPU whatever the device.
        labels: the class, or several that are repeated up to n; all classes in turn where not given. Of a model of
            several sets of classes either the number of a combination or {name: class or classes}; of a model that
            takes other tensors their `Condition`, of n samples.
        first_step: the teacher of a student of several steps, which makes the first of them.

    Raises:
        ValueError: for an n or labels out of range, a first step that cannot be, or samples that are not finite.
    """
    model = require_model(model)
    if first_step is not None:
        model = with_first_step_of(model, require_model(first_step))
    given = conditions(model, n, labels)
    return finished(model, model.noise(n, seed), given)


def conditions(model: GenerativeModel, n: int, labels: Labels | Condition) -> Condition | Tensor | None:
    """What n samples are of, as `draw` is given it; raises ValueError where `draw` does."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is a number of samples and positive: got {n!r}")
    return labels if isinstance(labels, Condition) else chosen_labels(model, n, labels)


def finished(model: GenerativeModel, noise: Tensor, given: Condition | Tensor | None) -> Tensor:
    """What the model makes of noise [n, *latent_shape], decoded; raises ValueError where it is not finite."""
    samples = model.decode(model.sample(noise, given))
    broken = int((~samples.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(noise)} samples are not finite: nothing was written; check the weights and the grid"
        )
    return samples


def chosen_labels(model: GenerativeModel, n: int, given: Labels) -> Tensor | None:
    """The class numbers int64 [n] of n samples, the given ones repeated; None of an unconditional model.

    Raises:
        ValueError: for classes that the model does not have, none at all, or more than samples.
    """
    if given is None:
        return model.labels(n)
    named = {name: _classes(value) for name, value in given.items()} if isinstance(given, Mapping) else {}
    wanted = _numbers(model, named) if named else _classes(given)
    if len(wanted) > n:
        raise ValueError(f"each label is that of a sample: got {len(wanted)} labels and n = {n}; raise n")
    if not model.num_classes:
        raise ValueError(f"this model is unconditional and takes no labels: got {given}; leave --labels out")
    chosen = wanted.repeat(-(-n // len(wanted)))[:n]
    model.condition(chosen, n)  # which says what is out of range
    return chosen


def _classes(given: Any) -> Tensor:
    """Class numbers int64 [m > 0], of a number, a sequence, a tensor or an array."""
    numbers = given.reshape(-1).tolist() if hasattr(given, "tolist") else given
    numbers = list(numbers) if isinstance(numbers, Sequence) and not isinstance(numbers, str) else [numbers]
    if not numbers or not all(hasattr(number, "__index__") and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"labels are class numbers, at least one: got {given!r}; leave labels out for all in turn")
    return torch.tensor(numbers)


def _numbers(model: GenerativeModel, given: Mapping[str, Tensor]) -> Tensor:
    """The combinations' numbers; a set that is given fewer classes than another repeats them."""
    takes = model.denoiser.takes
    if given.keys() != takes.keys():
        raise ValueError(f"labels by name are classes of {declared(takes)}: got {', '.join(given)}")
    most, numbers = max(map(len, given.values())), torch.zeros((), dtype=torch.int64)
    for name, entry in takes.items():
        check_classes(given[name], entry.classes, name)
        numbers = numbers * entry.classes + given[name].repeat(-(-most // len(given[name])))[:most]
    return numbers


def require_model(model: object) -> GenerativeModel:
    """`model`, if it is one.

    Raises:
        ValueError: for a path, say, which has to be loaded first.
    """
    if not isinstance(model, GenerativeModel):
        raise ValueError(f"expected a GenerativeModel, got {model!r}; fdistill.load makes one of a path or a name")
    return model
