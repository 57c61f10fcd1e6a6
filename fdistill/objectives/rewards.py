"""Rewards: what a sample is worth beyond being likely, differentiable with respect to the sample."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fdistill.core.distributed import same_on_all_ranks
from fdistill.core.spec import Described
from fdistill.data import GenerativeDataModule
from fdistill.evaluation.features import ClassifierFeatures
from fdistill.models.condition import Condition, Conditioned, Takes, count_classes, declared


class Reward(nn.Module, Described, ABC):
    """r(x, condition), larger is better. Its parameters are frozen; they are not part of a student's checkpoint.

    A reward of your own takes plain values, and is known to the command line by ``--import MODULE``::

        class Brightness(Reward):
            def __init__(self, scale: float = 1.0) -> None:
                super().__init__()
                self.scale = scale

            def forward(self, x: Tensor, condition: Condition) -> Tensor:
                return self.scale * x.flatten(1).mean(dim=1)
    """

    is_differentiable: bool = True
    """Whether a student can descend it; all others serve policy gradients and DiffusionNFT alone."""

    @abstractmethod
    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """[B] from samples [B, *sample_shape] in the data's units, differentiable in x.

        While a teacher is tuned, x are decoded images, clamped to [-1, 1], and no gradient is asked for.
        """

    def parts(self) -> dict[str, "Reward"]:
        """The rewards that it is made of, by name: itself, or those of a sum."""
        return {type(self).__name__: self}

    def total(self, scores: Tensor) -> Tensor:
        """[N] of the parts' rewards [N, parts], over all samples that are compared with each other."""
        return scores[:, 0]

    def check_takes(self, takes: Takes) -> None:
        """Raises ValueError where samples of a network that takes this lack what the reward reads of a condition."""
        for part in self.parts().values():
            if part is not self:
                part.check_takes(takes)

    def prepare(self, data: GenerativeDataModule) -> None:
        """Called before the first turn: fit what has to be fitted."""


def worth(name: str, reward: Reward, x: Tensor, condition: Condition) -> Tensor:
    """r(x, condition) [B].

    Raises:
        ValueError: naming the reward, where it raises, or does not give one number a sample.
    """
    try:
        found = reward(x, condition)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the reward {name} raised {type(error).__name__}: {said}") from error
    if not isinstance(found, Tensor) or found.shape != (len(x),):
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the reward {name} gives one number for each sample: expected [{len(x)}], got {got}")
    return found


class TargetReward(Reward):
    """-|x - target|^2 / 2, summed over the entries of a sample.

    It is the logarithm of a Gaussian likelihood: the tilt exp(beta r) of N(m, s^2 I) is the Gaussian of precision
    1/s^2 + beta and mean (m/s^2 + beta target) / (1/s^2 + beta).
    """

    target: Tensor

    def __init__(self, target: float | list[Any]) -> None:
        """Args:
        target: what every sample should be: one number for all entries, or lists nested as the sample's shape.
        """
        super().__init__()
        try:
            values = torch.tensor(target, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"target is a number, or lists of numbers nested as a sample: {error}") from error
        if not values.isfinite().all():
            raise ValueError("target holds finite numbers: got a NaN or an infinity; correct it")
        self.register_buffer("target", values, persistent=False)

    def forward(self, x: Tensor, condition: Conditioned = None) -> Tensor:
        """[B] <= 0, 0 at the target; the condition is not read.

        Raises:
            ValueError: if samples have another shape than the target.
        """
        self._check(tuple(x.shape[1:]))
        return -(x - self.target.to(x.dtype)).square().flatten(1).sum(dim=1) / 2

    def prepare(self, data: GenerativeDataModule) -> None:
        """Nothing is fitted; raises ValueError where the data has another shape than the target."""
        self._check(tuple(data.sample_shape))

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.target.ndim and tuple(self.target.shape) != shape:
            raise ValueError(
                f"target has the shape of one sample: expected {shape}, got {tuple(self.target.shape)}; "
                "nest its lists like that, or give one number"
            )


class ClassifierReward(Reward):
    """ln of the probability that a small classifier, fitted to the run's training split, gives to the asked class.

    The data are labelled square images of at least 8 x 8. The same seed and data give the same classifier, bit for bit
    on a CPU; of several ranks all use the first one's.
    """

    def __init__(self, label: int | None = None, epochs: int | None = None, seed: int = 0) -> None:
        """Args:
        label: the class that every sample should have; None for the class that each was asked for.
        epochs: of the classifier's training, >= 1; None for as many as show it 200,000 images, between 5 and 100.
        seed: of the classifier's training.
        """
        super().__init__()
        if label is not None and label < 0:
            raise ValueError(f"label is a class of the data: expected >= 0, got {label}")
        self.label, self.seed, self.features = label, seed, ClassifierFeatures(epochs)
        self._takes: Takes = {}

    def check_takes(self, takes: Takes) -> None:
        if self.label is None and not count_classes(takes):
            raise ValueError(
                "ClassifierReward scores the class that each sample was asked for: expected a network that takes "
                f"classes, got one of {declared(takes)}; set label, or give a conditional one"
            )

    def prepare(self, data: GenerativeDataModule) -> None:
        """Train the classifier, on this module's device.

        Raises:
            ValueError: for data without samples or classes, of another kind than square images, or without `label`.
        """
        if data.num_classes < 2:
            raise ValueError(
                f"ClassifierReward learns the classes of the data: expected at least 2, got {data.num_classes}; "
                "use labelled data or another reward"
            )
        if self.label is not None and self.label >= data.num_classes:
            raise ValueError(f"label is a class of the data: expected < {data.num_classes}, got {self.label}")
        self._takes = data.takes
        self.features.prepare(data.train_samples, data.train_samples.labels, data.num_classes, self.seed)
        same_on_all_ranks(self.features)

    def forward(self, x: Tensor, condition: Conditioned) -> Tensor:
        """[B] <= 0, in float32 whatever the precision of the networks.

        Raises:
            ValueError: before `prepare`, or without the classes of B samples where no `label` is set.
        """
        classifier = self.features.classifier
        if classifier is None:
            raise ValueError("ClassifierReward is fitted to the run's data first: call prepare(data)")
        wanted = self._wanted(x, Condition.of(condition, self._takes))
        with torch.autocast(x.device.type, enabled=False):
            logits = classifier(x.to(classifier.head.weight.dtype))
        return logits.log_softmax(dim=1).gather(1, wanted[:, None]).squeeze(1)

    def _wanted(self, x: Tensor, condition: Condition) -> Tensor:
        if self.label is not None:
            return torch.full((len(x),), self.label, device=x.device)
        if condition.length != len(x) or not self._takes.keys() <= condition.keys():
            raise ValueError(
                f"ClassifierReward scores the class of each sample's condition: expected {', '.join(self._takes)} of "
                f"{len(x)} samples, got {condition} of {condition.length}; set label for an unconditional student"
            )
        return condition.numbers(self._takes)
