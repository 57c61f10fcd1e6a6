"""What an objective is: what it needs to know of a noised sample, and from that the terms of the student's loss."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from fdistill.core.spec import Described
from fdistill.data import GenerativeDataModule
from fdistill.models.condition import Condition
from fdistill.models.vae import Decoder

T = TypeVar("T")
PredictionLevel = Literal["nothing", "value", "gradient"]
"""How a denoiser is evaluated: not at all, its value alone, or its value with a graph to its input."""


class Needs(NamedTuple):
    """What has to be built and evaluated for an objective; nothing else is."""

    teacher: PredictionLevel = "nothing"
    fake_score: PredictionLevel = "nothing"
    ratio: bool = False  # the centred log ratio, without gradient
    logit: bool = False  # the discriminator's logit, with a graph to the generated sample
    pairs: bool = False  # latents with the samples that the teacher's ODE makes of them
    latents: bool = False  # what a one-step student made its samples of
    anchor: int = 0  # steps of the teacher's trajectory to what a first step regresses to; 0 for no such regression

    @property
    def discriminator(self) -> bool:
        """Whether a discriminator is trained."""
        return self.ratio or self.logit

    @property
    def others(self) -> bool:
        """Whether a network learns beside the student: a fake score or a discriminator."""
        return self.fake_score != "nothing" or self.discriminator

    @property
    def real(self) -> bool:
        """Whether real data is needed: what a discriminator learns from."""
        return self.discriminator

    @property
    def input_gradient(self) -> bool:
        """Whether anything is differentiated by the noised sample."""
        return self.logit or "gradient" in (self.teacher, self.fake_score)

    def together(self, other: "Needs") -> "Needs":
        """What serves both."""
        levels: tuple[PredictionLevel, ...] = get_args(PredictionLevel)
        teacher = max(self.teacher, other.teacher, key=levels.index)
        fake_score = max(self.fake_score, other.fake_score, key=levels.index)
        others: list[Any] = [mine or yours for mine, yours in zip(self[2:], other[2:], strict=True)]
        return Needs(teacher, fake_score, *others)


class Regression(NamedTuple):
    """The student's own samples for some latents, and what the teacher made of the same."""

    x: Tensor  # [P, *sample_shape], a leaf with gradient
    target: Tensor  # [P, *sample_shape]


class NoisedSamples(NamedTuple):
    """Generated samples, noised once, and the predictions there; None where the objective does not need one.

    x is a leaf that requires gradient where any network is differentiated by its input; x_t = x + sigma eps depends on
    it. Denoised values are [B, *sample_shape], the others [B].
    """

    x: Tensor
    x_t: Tensor
    sigma: Tensor
    sigma_data: float
    condition: Condition = Condition()
    teacher: Tensor | None = None  # D_p(x_t, sigma)
    fake_score: Tensor | None = None  # D_q(x_t, sigma)
    log_ratio: Tensor | None = None  # ln p/q at x_t
    logit: Tensor | None = None
    regression: Regression | None = None
    update: int = 0  # updates of the student so far, for schedules
    generator: torch.Generator | None = None  # for random draws of the objective, on the samples' device
    latents: Tensor | None = None  # of x, standard normal [B, *sample_shape]
    projected: Tensor | None = None  # D_q in the score projection, where its guidance is another there
    first: Regression | None = None  # what the student's first step made, and what the teacher's trajectory asks of it
    decoder: Decoder | None = None  # makes images of x, where these are latents


class Term(NamedTuple):
    """One term of the student's loss: the mean of `value` over the batch, times `weight`."""

    value: Tensor  # [B], with a graph to x (or to regression.x, or first.x); none at weight 0, which is only logged
    weight: float = 1.0
    share: float | None = None  # where given, in place of the weight: norm of its gradient over that of the others


class StudentLoss(NamedTuple):
    """Terms by name (logged as ``loss/<name>``), and the weight h(r) [B] of the samples where there is one."""

    terms: dict[str, Term]
    sample_weight: Tensor | None = None


class Objective(Described, ABC):
    """Turns predictions at generated samples into the student's loss.

    An objective has no parameters and no state: what changes while training is a function of the student's updates.
    """

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What has to be there, at whatever update."""

    @abstractmethod
    def loss(self, at: NoisedSamples) -> StudentLoss:
        """The terms to descend; the term named "student" matches the distributions, where there is one."""

    def at(self, update: int) -> "Objective":
        """The objective of this update of the student: itself, unless it changes while training."""
        return self

    def networks(self) -> tuple[nn.Module, ...]:
        """Frozen networks of the objective itself (a reward's), so that they move to the device with the others."""
        return ()

    def prepare(self, data: GenerativeDataModule) -> None:
        """Called before the first turn, with the run's data, for what has to be fitted to it."""


def required(value: T | None) -> T:
    """A value that is there because the `needs` of the objective name it.

    Raises:
        TypeError: where they do not.
    """
    if value is None:
        raise TypeError("an objective reads what its `needs` name: expected a value, got None; name it there")
    return value


def per_sample_mean(values: Tensor) -> Tensor:
    """Mean over everything but the batch axis, [B]."""
    return values.flatten(1).mean(dim=1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum over everything but the batch axis of a b, [B]."""
    return (a * b).flatten(1).sum(dim=1)


def expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] to the shape [B, 1, ...] that multiplies samples."""
    return per_sample.reshape(-1, *[1] * (like.ndim - 1))
