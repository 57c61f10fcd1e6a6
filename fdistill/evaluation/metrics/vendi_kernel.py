"""The kernel matrix K of a Vendi score, a block of pairs at a time: cosine or Gaussian, ones on its diagonal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fdistill.evaluation.metrics.blocks import ROWS, blocks, check_features, squared_distances

KernelName = Literal["cosine", "rbf"]

COLUMNS = 256
"""Columns of a block of the Gram matrix: narrow ones skip nearly all of the half that symmetry gives for nothing."""


@dataclass(frozen=True)
class Kernel:
    """`K_ij = u_i . u_j` of rows scaled to length one, or `K_ij = exp(-|x_i - x_j|^2 / (2 bandwidth^2))`.

    Attributes:
        bandwidth: of the Gaussian, > 0 and finite; None for the cosine.
        origin: float64 [d], subtracted from every row first. The cosine depends on it; the Gaussian does not, but
            keeps more digits when the rows are near it.
    """

    bandwidth: float | None
    origin: Tensor | None

    def rows(self, features: Tensor) -> Iterator[Tensor]:
        """Return features [n, d] in float64 blocks, moved to the origin and scaled: the cosine's have length one.

        Raises:
            ValueError: for a zero row under the cosine, which has no direction.
        """
        for block in blocks(features):
            moved = block if self.origin is None else block - self.origin
            scale: Any = self.bandwidth or moved.norm(dim=1, keepdim=True)
            if self.bandwidth is None and not scale.all():
                raise ValueError(
                    f"every feature row has a direction: expected 0 zero rows, got {self._zero_rows(features)} of "
                    f"{len(features)}; use another extractor or another centre"
                )
            yield moved / scale

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """Return K [len(a), len(b)] of two blocks of `rows`."""
        return a @ b.T if self.bandwidth is None else squared_distances(a, b).mul_(-0.5).exp_()

    def pair_blocks(self, features: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Return K [n, n] in blocks on and above the diagonal, each with its rows and columns; it is symmetric."""
        starts = range(0, len(features), ROWS)
        for i, a in zip(starts, self.rows(features), strict=True):
            for j, b in zip(range(i, len(features), ROWS), self.rows(features[i:]), strict=True):
                block = self.pairs(a, b)
                if i == j:
                    block.fill_diagonal_(1)  # of narrow Gaussians rounding of the distance 0 would leave less
                yield slice(i, i + len(a)), slice(j, j + len(b)), block

    def _zero_rows(self, features: Tensor) -> int:
        origin = 0 if self.origin is None else self.origin
        return sum(int(((block - origin).norm(dim=1) == 0).sum()) for block in blocks(features))


def checked_kernel(features: Tensor, kernel: KernelName, bandwidth: float | None, centre: Tensor | None) -> Kernel:
    """Return the kernel of features [n, d], n >= 1, after checking all four.

    Raises:
        ValueError: for features of a wrong shape, none of them, or a NaN; and as `check_bandwidth` and `check_centre`.
    """
    check_features("features", features)
    check_bandwidth(kernel, bandwidth)
    check_centre(centre, features.shape[1])
    origin = next(blocks(features)).mean(0) if kernel == "rbf" else centre
    return Kernel(bandwidth, None if origin is None else origin.to(features.device, torch.float64))


def check_bandwidth(kernel: str, bandwidth: float | None) -> None:
    """Raise ValueError for an unknown kernel, for "rbf" without a finite bandwidth > 0, for "cosine" with one."""
    if kernel not in ("cosine", "rbf"):
        raise ValueError(f"kernel is 'cosine' or 'rbf': got {kernel!r}; check the spelling")
    if kernel == "cosine" and bandwidth is not None:
        raise ValueError(f"the cosine kernel has no bandwidth: expected None, got {bandwidth}; use kernel='rbf'")
    if kernel == "rbf" and not (bandwidth is not None and 0 < bandwidth < float("inf")):
        raise ValueError(
            f"the rbf kernel has a bandwidth in (0, inf): got {bandwidth}; the median distance of two real samples is "
            "a start"
        )


def check_centre(centre: Tensor | None, width: int) -> None:
    """Raise ValueError for a centre that is not finite numbers [width]."""
    if centre is not None and not (centre.shape == (width,) and centre.isfinite().all()):
        raise ValueError(
            f"centre is one finite number per feature: expected [{width}], got {list(centre.shape)}, "
            f"{int((~centre.isfinite()).sum())} of them not finite; use the mean of the reference"
        )


def add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of `rows^T rows` to `gram` [d, d] in place; below the diagonal blocks stays as it was."""
    for start in range(0, len(gram), COLUMNS):
        columns = slice(start, start + COLUMNS)
        gram[columns, start:].addmm_(rows[:, columns].T, rows[:, start:])
