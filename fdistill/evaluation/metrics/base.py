"""What every metric on features shares: `update(features, real)`, states that add over batches and ranks, errors."""

import copy
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from fdistill.core.distributed import gather_rows, global_sum
from fdistill.evaluation.metrics.blocks import check_features, check_width

Value = Tensor | dict[str, Tensor]


class FeatureMetric(Metric):
    """A number, or several by name, of generated features beside real ones.

    States are either lists of rows, which are laid end to end over batches and ranks, or sums in float64 or int64,
    which add. Both make a metric independent of how the samples were divided, up to the rounding of float64 sums.
    Subclasses declare states with `add_rows` and `add_sum`, and implement `update` and `compute`.

    Args:
        reset_real_features: whether `reset()` forgets the real samples too; False keeps them.
    """

    is_differentiable = False
    full_state_update = False
    real_states: tuple[str, ...] = ()
    """Names of the states that hold real samples."""
    reads: Literal["features", "modes", "training", "teacher"] = "features"
    """What `update` is to be given: features of generated and real samples, the modes or classes read from both,
    features of generated and of all training samples, or of student and teacher samples from the same noise."""

    def __init__(self, reset_real_features: bool = True) -> None:
        super().__init__()
        self.reset_real_features = reset_real_features

    @property
    def label(self) -> str:
        """The class name in words joined by underscores: what a metric of one number is logged as."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def of(self, generated: Tensor, real: Tensor) -> Value:
        """The value for these samples alone, on their device; asks no other rank and leaves the metric as it is."""
        fresh = copy.deepcopy(self).to(generated.device)
        fresh.distributed_available_fn, fresh.reset_real_features = _never, True
        fresh.reset()
        fresh.update(real, real=True)
        fresh.update(generated, real=False)
        return fresh.compute()

    def values(self) -> dict[str, Tensor]:
        """`compute()` as scalars by name."""
        value = self.compute()
        return value if isinstance(value, dict) else {self.label: value}

    def add_rows(self, name: str) -> None:
        """Declare a state that keeps rows; append to the list `self.<name>`, read it with `rows`."""
        self.add_state(name, default=[], dist_reduce_fx="cat")

    def add_sum(self, name: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float64) -> None:
        """Declare a state that adds over batches and ranks, zero at first."""
        self.add_state(name, default=torch.zeros(tuple(shape), dtype=dtype), dist_reduce_fx="sum")

    def rows(self, name: str) -> Tensor:
        """All rows of a state [n, d]; [0, 0] before the first."""
        kept = getattr(self, name)
        kept = [kept] if isinstance(kept, Tensor) else kept
        return torch.cat(kept) if kept else torch.zeros(0, 0)

    def need(self, what: str, count: int, minimum: int = 1) -> None:
        """Raise ValueError where fewer than `minimum` samples of a kind were given."""
        if count < minimum:
            raise ValueError(
                f"{type(self).__name__} needs at least {minimum} {what} samples before compute(), got {count}: "
                f"call update(features, real={what == 'real'})"
            )

    def reset(self) -> None:
        """Forget all samples, or only the generated ones where reset_real_features is False."""
        kept = {} if self.reset_real_features else {name: _copied(getattr(self, name)) for name in self.real_states}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)

    @contextmanager
    def sync_context(self, *args: Any, should_unsync: bool = True, **kwargs: Any) -> Iterator[None]:
        """States of all ranks inside, of this one again outside: also after an error, which torchmetrics forgets."""
        self.sync(*args, **kwargs)
        try:
            yield
        finally:
            self.unsync(should_unsync=self._is_synced and should_unsync)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a value of one batch alone has no other side to compare with."""
        raise TypeError(f"{type(self).__name__} compares sets: call update(features, real) for both, then compute()")

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Over the ranks; torchmetrics' own cannot tell the width of the rows that a rank without any lacks."""
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(default, list):
                gathered = gather_rows(self.rows(name).to(self.device))
                setattr(self, name, [gathered] if len(gathered) else [])
            else:
                setattr(self, name, global_sum(state))


class RowMetric(FeatureMetric):
    """A metric that needs all samples at once; it keeps the features of both sides, in the type they came in."""

    real_states = ("real",)
    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        self.add_rows("generated")
        self.add_rows("real")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [n, d] of real samples, or of generated ones.

        Raises:
            ValueError: for a wrong shape, a NaN or an infinity, or another d than before.
        """
        name = "real" if real else "generated"
        check_features(f"{name} features", features)
        for kept in (self.generated, self.real):
            if kept:
                check_width(kept[0].shape[1], features)
        getattr(self, name).append(features.detach().to(self.device))

    @abstractmethod
    def measure(self, generated: Tensor, real: Tensor) -> Value:
        """The value for all generated [n, d] and real [m, d] features, either possibly [0, 0]."""

    def compute(self) -> Value:
        """The value for all samples so far, of all ranks."""
        return self.measure(self.rows("generated"), self.rows("real"))


def _never() -> bool:
    return False


def _copied(state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return state.clone() if isinstance(state, Tensor) else list(state)
