"""Paired distance: how far a student's sample lies from what its teacher makes of the same noise."""

from typing import Any

import torch
from torch import Tensor

from fdistill.core.distributed import gather_objects
from fdistill.evaluation.metrics.base import FeatureMetric, Value
from fdistill.evaluation.metrics.blocks import blocks, check_features


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

    On each rank the i-th sample of the one belongs to the i-th of the other, whatever the sizes of the batches. With
    reset_real_features=False teacher's samples that were made once serve every later student.

    Args:
        reset_real_features: whether `reset()` forgets the teacher's samples too.
        error: also "paired_distance_error", the standard error of the mean.
    """

    reads = "teacher"

    def __init__(self, reset_real_features: bool = True, error: bool = False) -> None:
        super().__init__(reset_real_features)
        self.gives = ("paired_distance", "paired_distance_error") if error else ()
        self._surplus: list[int] = []  # of student over teacher samples, by rank; of this one where empty

    def measure(self, generated: Tensor, real: Tensor) -> Value:
        value = paired_distance(generated, real)
        if not self.gives:
            return value
        return {self.gives[0]: value, self.gives[1]: _distances(generated, real).std() / len(real) ** 0.5}

    def compute(self) -> Value:
        """The mean distance of all pairs so far, of all ranks."""
        surplus = self._surplus or [self._more()]
        if any(surplus):
            raise ValueError(
                "student and teacher are paired by their order on each rank: expected as many of the one as of the "
                f"other, got {surplus} more of the student's by rank; update both for each noise"
            )
        return super().compute()

    def _more(self) -> int:
        return len(self.rows("generated")) - len(self.rows("real"))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # counted before the ranks' rows are joined, where one rank's surplus would fill another's gap
        self._surplus = gather_objects(self._more())
        super()._sync_dist(*args, **kwargs)

    def unsync(self, *args: Any, **kwargs: Any) -> None:
        """This rank's samples again."""
        self._surplus = []
        super().unsync(*args, **kwargs)


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair of rows [n], in float64."""
    return torch.cat([(a - b).norm(dim=1) for a, b in zip(blocks(student), blocks(teacher), strict=True)])
