"""Samples of a model by a seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.sampling.generator import GenerativeModel, check_labels


def draw(model: GenerativeModel, n: int, seed: int = 0, labels: int | Sequence[int] | None = None) -> Tensor:
    """n samples of a seed, float32 [n, *image_shape] on the CPU, images in [-1, 1].

    They are those of `fdistill sample` but for rounding.

    Args:
        model: as `load` or `distill` gives it.
        n: how many, >= 1.
        seed: of the noise, which is drawn on the CPU whatever the device.
        labels: the class, or several that are repeated up to n; all classes in turn where not given.

    Raises:
        ValueError: for an n or labels out of range, or samples that are not finite.
    """
    model = require_model(model)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is a number of samples and positive: got {n!r}")
    samples = model.decode(model.sample(model.noise(n, seed), chosen_labels(model, n, labels)))
    broken = int((~samples.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(f"{broken} of {n} samples are not finite: nothing was written; check the weights and the grid")
    return samples


def chosen_labels(model: GenerativeModel, n: int, given: int | Sequence[int] | None) -> Tensor | None:
    """The classes int64 [n] of n samples, the given ones repeated; None of an unconditional model.

    Raises:
        ValueError: for classes that the model does not have.
    """
    wanted = torch.tensor([] if given is None else given).reshape(-1)
    if not len(wanted):
        return model.labels(n)
    if not model.num_classes:
        raise ValueError(f"this model is unconditional and takes no labels: got {given}; leave --labels out")
    return check_labels(wanted.repeat(-(-n // len(wanted)))[:n], model.num_classes)


def require_model(model: object) -> GenerativeModel:
    """`model`, if it is one.

    Raises:
        ValueError: for a path, say, which has to be loaded first.
    """
    if not isinstance(model, GenerativeModel):
        raise ValueError(f"expected a GenerativeModel, got {model!r}; fdistill.load makes one of a path or a name")
    return model
