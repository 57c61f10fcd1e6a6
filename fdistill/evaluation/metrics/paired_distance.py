"""Paired distance: how far a student's sample lies from what its teacher makes of the same noise."""

from typing import Any

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import blocks, check_features, check_width


def paired_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Euclidean distance of `G(z)` to `Phi_teacher(z)` for the same z, a float64 scalar in [0, inf).

    0 where the student reproduces its teacher's map from noise to samples; a student that only matches the law may
    lie as far off as samples of unrelated noise.

    Args:
        student: features [n, d], n >= 1.
        teacher: features [n, d] of the teacher's samples from the same noise in the same order.

    Raises:
        ValueError: for a wrong shape, unequal numbers of samples, or a NaN.
    """
    check_features("student", student)
    check_features("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher are paired row by row: expected {list(teacher.shape)} of the student, "
            f"got {list(student.shape)}; make both from the same noise, and use one extractor"
        )
    return _distances(student, teacher).mean()


class PairedDistance(FeatureMetric):
    """`paired_distance` over all ranks; generated samples are the student's, real=True means the teacher's.

    On each rank the i-th sample of the one belongs to the i-th of the other, whatever the sizes of the batches. Pairs
    are forgotten once measured, so that batches of both in turn need no memory. With reset_real_features=False all is
    kept: teacher's samples that were made once serve every later student.
    """

    real_states = ("teacher",)
    reads = "teacher"
    student: list[Tensor]
    teacher: list[Tensor]
    surplus: list[Tensor]
    distance: Tensor
    pairs: Tensor

    def __init__(self, reset_real_features: bool = True) -> None:
        super().__init__(reset_real_features)
        self.add_rows("student")  # rows without a partner so far
        self.add_rows("teacher")
        self.add_rows("surplus")  # of student over teacher samples; empty on a rank, one row per rank when gathered
        self.add_sum("distance")
        self.add_sum("pairs", dtype=torch.int64)

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [n, d] of the teacher's samples (`real`), or of the student's.

        Raises:
            ValueError: for a wrong shape, a NaN or an infinity, or another d than the partners wait with.
        """
        name = "teacher" if real else "student"
        check_features(f"{name} features", features)
        for kept in (*self.student, *self.teacher):
            check_width(kept.shape[1], features)
        getattr(self, name).append(features.detach().to(self.device))
        if self.reset_real_features and self.student and self.teacher:
            self._forget_pairs()

    def compute(self) -> Tensor:
        """The mean distance of all pairs so far, of all ranks."""
        surplus = self.rows("surplus") if self.surplus else self._surplus()
        if surplus.any():
            raise ValueError(
                "student and teacher are paired by their order on each rank: expected as many of the one as of the "
                f"other, got {surplus.flatten().tolist()} more of the student's by rank; update both for each noise"
            )
        student, teacher = self.rows("student"), self.rows("teacher")
        pairs = int(self.pairs) + len(student)
        self.need("generated", pairs)
        return (self.distance + _distances(student, teacher).sum()) / pairs

    def _forget_pairs(self) -> None:
        student, teacher = self.rows("student"), self.rows("teacher")
        pairs = min(len(student), len(teacher))
        self.distance = self.distance + _distances(student[:pairs], teacher[:pairs]).sum()
        self.pairs = self.pairs + pairs
        # a clone, because a view would hold on to the pairs
        waiting = (student[pairs:].clone(), teacher[pairs:].clone())
        self.student, self.teacher = ([rows] if len(rows) else [] for rows in waiting)

    def _surplus(self) -> Tensor:
        """How many more samples of the student than of the teacher wait here, as a row [1, 1]."""
        student, teacher = (sum(map(len, side)) for side in (self.student, self.teacher))
        return torch.tensor([[student - teacher]])

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # counted before the ranks' rows are joined, where one rank's surplus would fill another's gap
        self.surplus = [self._surplus()]
        super()._sync_dist(*args, **kwargs)


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair of rows [n], in float64."""
    pairs = zip(blocks(student), blocks(teacher), strict=True)
    return torch.cat([(a - b).norm(dim=1) for a, b in pairs])
