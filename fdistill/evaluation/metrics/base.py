"""What every metric on features shares: `update(features, real)`, rows that join over batches and ranks, errors."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from fdistill.core.distributed import gather_rows
from fdistill.evaluation.metrics.blocks import check_features, check_width

SIDES = ("generated", "real")
Value = Tensor | dict[str, Tensor]


class FeatureMetric(Metric):
    """A number, or several by name, of generated features beside real ones.

    A subclass implements `measure`. It keeps the features of both sides, in the type they came in, laid end to end over
    batches and ranks, so that it does not matter how the samples were divided. One whose value comes from sums needs no
    features: it sets `sums` and folds each batch into one row in `kept`.

    Args:
        reset_real_features: whether `reset()` forgets the real samples too; False keeps them.
    """

    is_differentiable = False
    full_state_update = False
    generated: list[Tensor]
    real: list[Tensor]

    reads: Literal["features", "modes", "training", "teacher"] = "features"
    """What `update` is to be given: features of generated and real samples, the modes or classes read from both,
    features of generated and of all training samples, or of student and teacher samples from the same noise."""
    gives: tuple[str, ...] = ()
    """The names of its numbers; empty for a single one, whose name is that under which it is measured."""
    least = (1, 1)
    """Samples of each side that `measure` needs; the functions behind it may ask for more."""
    alone = False
    """Whether it is about generated samples alone; real ones are checked and left aside."""
    sums = False
    """Whether `kept` leaves one row of sums, the first of which is the number of samples."""

    def __init__(self, reset_real_features: bool = True) -> None:
        super().__init__()
        self.reset_real_features = reset_real_features
        self._width: int | None = None
        for side in SIDES:
            self.add_state(side, default=[], dist_reduce_fx="cat")

    @abstractmethod
    def measure(self, generated: Tensor, real: Tensor) -> Value:
        """The value for all rows that were kept of each side; [0, 0] for a side that may be missing and is."""

    def kept(self, rows: list[Tensor], features: Tensor) -> list[Tensor]:
        """What is kept of a side: `rows` so far and a new batch of features [n, d]."""
        return [*rows, features.detach()]

    def check(self, name: str, features: Tensor) -> None:
        """Raise ValueError for a batch that cannot be measured."""
        check_features(name, features)

    def of(self, generated: Tensor, real: Tensor) -> Value:
        """The value for these samples alone, on their device; asks no other rank and leaves the metric as it is."""
        sides = {"generated": generated} if self.alone else {"generated": generated, "real": real}
        for side, features in sides.items():
            self.check(f"{side} features", features)
        kept = {side: torch.cat(self.kept([], features)) for side, features in sides.items()}
        return self._value({"real": torch.zeros(0, 0)} | kept)

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [n, d] of real samples, or of generated ones.

        Raises:
            ValueError: for a wrong shape, a NaN or an infinity, or another d than before.
        """
        side = SIDES[real]
        self.check(f"{side} features", features)
        if self._width is not None:
            check_width(self._width, features)
        self._width = features.shape[1] if features.ndim == 2 else None
        if not (real and self.alone):
            setattr(self, side, self.kept(getattr(self, side), features.to(self.device)))

    def compute(self) -> Value:
        """The value for all samples so far, of all ranks."""
        return self._value({side: self.rows(side) for side in SIDES})

    def rows(self, side: str) -> Tensor:
        """What is kept of a side, below each other; [0, 0] before the first."""
        kept = getattr(self, side)
        return kept if isinstance(kept, Tensor) else torch.cat(kept) if kept else torch.zeros(0, 0)

    def reset(self) -> None:
        """Forget all samples, or only the generated ones where reset_real_features is False."""
        real = [] if self.reset_real_features else list(self.real)
        super().reset()
        self.real, self._width = real, self._width if real else None

    def _value(self, rows: Mapping[str, Tensor]) -> Value:
        for side, least in zip(SIDES, self.least, strict=True):
            kept = rows[side]
            count = int(kept[:, 0].sum()) if self.sums and len(kept) else len(kept)
            if count < least:
                raise ValueError(
                    f"{type(self).__name__} needs at least {least} {side} samples before compute(), got {count}: "
                    f"call update(features, real={side == 'real'})"
                )
        return self.measure(rows["generated"], rows["real"])

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
        for side in SIDES:
            gathered = gather_rows(self.rows(side).to(self.device))
            setattr(self, side, [gathered] if len(gathered) else [])


RowMetric = FeatureMetric
"""Its name for metrics that keep all features, before those of sums were the same class."""
