"""Which classes or modes generated samples fall into, and which are missing."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fdistill.evaluation.metrics.base import FeatureMetric
from fdistill.evaluation.metrics.blocks import check_features, check_tensor, checked_labels

OUTSIDE = -1
"""Label of a sample in no mode."""
ROUNDING = 1e-6
"""A count that is just enough is enough, whichever way float32 rounded the weight it is compared with."""


class ModeCoverage(FeatureMetric):
    """Which modes the generated samples hit, and how often, beside the reference's, from streaming histograms.

    The reference is `weights` where given, else the real samples, else all modes evenly; its modes are those of weight
    above zero. `compute()` returns float64 scalars by name, of n generated samples:

    * `modes_covered`: how many of the reference's modes hold at least one sample and at least `min_share` of the
      share of all n that they should hold.
    * `mode_coverage`: that number over the number of the reference's modes, in [0, 1]; 1 is best.
    * `mode_precision`: share of the n samples inside any mode, in [0, 1]; 1 is best. The others are left out below.
    * `mode_weight_kl`: KL(p_generated || p_reference) in nats less its bias, (K - 1) / (2 n) for K modes hit, and the
      same for a reference of real samples. It is not clamped, so that the right law scores 0 on average, a single
      draw below 0 as often as above; needs several samples a mode. inf where a sample lies in a mode of weight 0, or
      none in any.
    * `mode_entropy`: entropy over ln(num_modes), in [0, 1]; 1: all modes equally often.
    * `effective_modes`: exp of the entropy, in [1, num_modes]; 0 where no sample is in a mode.

    Args:
        num_modes: M >= 2.
        oracle: maps features [n, d] to the mode of each sample, integers [n] in [0, M), -1 for none. None: `update`
            takes such integers [n] in place of features.
        weights: how often each mode occurs in the reference [M], >= 0; normalised here.
        min_share: in (0, 1], of a mode's own weight.
        reset_real_features: whether `reset()` forgets the real samples too.

    Raises:
        ValueError: for fewer than two modes, weights that are no distribution over them, or a share outside (0, 1].
    """

    sums, least = True, (1, 0)
    gives = ("modes_covered", "mode_coverage", "mode_precision", "mode_weight_kl", "mode_entropy", "effective_modes")

    def __init__(
        self,
        num_modes: int,
        oracle: Callable[[Tensor], Tensor] | None = None,
        weights: Tensor | None = None,
        min_share: float = 0.25,
        reset_real_features: bool = True,
    ) -> None:
        super().__init__(reset_real_features)
        _check_at_least_two("num_modes", num_modes)
        _check_share(min_share)
        self.weights = None if weights is None else _checked_weights(weights)
        if weights is not None and len(weights) != num_modes:
            raise ValueError(f"weights hold one number per mode: expected {num_modes}, got {len(weights)}")
        self.num_modes, self.oracle, self.min_share = num_modes, oracle, min_share
        self.reads = "modes" if oracle is None else "features"

    def check(self, name: str, features: Tensor) -> None:
        (check_tensor if self.oracle is None else check_features)(name, features)

    def kept(self, rows: list[Tensor], features: Tensor) -> list[Tensor]:
        """The numbers of samples, of those outside, and of those in each mode, as one row.

        Raises:
            ValueError: for labels that are no integers in [-1, num_modes).
        """
        labels = features.detach() if self.oracle is None else self.oracle(features.detach())
        if self.oracle is not None and labels.shape != features.shape[:1]:
            raise ValueError(
                f"the oracle names one mode per sample: expected [{len(features)}], got {list(labels.shape)}"
            )
        checked_labels(torch.where(labels == OUTSIDE, 0, labels), self.num_modes)
        counts = torch.bincount(labels.long() - OUTSIDE, minlength=1 + self.num_modes)
        return [torch.cat([*rows, torch.cat([counts.sum()[None], counts])[None]]).sum(0, keepdim=True)]

    def measure(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        total = generated.sum(0).double()
        n, counts = total[0], total[2:]
        reference, real_bias = self._reference(real, counts.device)
        inside = counts.sum()
        enough = (self.min_share * reference * n).clamp(min=1) * (1 - ROUNDING)
        covered = (counts >= enough) & (reference > 0)
        share = counts / inside.clamp(min=1)
        entropy = _entropy(share)
        bias = ((counts > 0).sum() - 1) / (2 * inside) + real_bias
        values = (
            covered.sum().double(),
            covered.double().sum() / (reference > 0).sum(),
            inside / n,
            _kl(share, reference) - bias if inside else torch.full_like(entropy, math.inf),
            entropy / math.log(self.num_modes),
            entropy.exp() * (inside > 0),
        )
        return dict(zip(self.gives, values, strict=True))

    def _reference(self, real: Tensor, device: torch.device) -> tuple[Tensor, float]:
        """Return how often each mode occurs in the reference [M], summing to 1, and what its noise adds to the KL."""
        if self.weights is not None:
            return self.weights.to(device), 0.0
        if not len(real):
            return torch.full((self.num_modes,), 1 / self.num_modes, dtype=torch.float64, device=device), 0.0
        counts = real.sum(0)[2:].double()
        inside = float(counts.sum())
        if not inside:
            raise ValueError(
                f"real samples say how often each mode occurs: expected some in a mode, got all "
                f"{int(real[:, 0].sum())} in none; check the oracle on real samples"
            )
        return counts / inside, (int((counts > 0).sum()) - 1) / (2 * inside)


def class_entropy(labels: Tensor, num_classes: int) -> Tensor:
    """Return the entropy of the label histogram over ln(num_classes), a float64 scalar in [0, 1].

    1: all classes equally often; 0: one class only. This reads as collapse where the wanted labels are even.

    Args:
        labels: integers [n] in [0, num_classes), usually a classifier's reading of generated samples.
        num_classes: >= 2.

    Raises:
        ValueError: for labels of another shape, type or range, or fewer than two classes.
    """
    _check_at_least_two("num_classes", num_classes)
    return _entropy(_histogram(labels, num_classes)) / math.log(num_classes)


def mode_weight_kl(labels: Tensor, weights: Tensor) -> Tensor:
    """Return KL(p_generated || p_reference) of the mode histograms in nats, a float64 scalar in [0, inf].

    0 ln 0 is 0, so a dropped mode stays finite; a sample in a mode of weight 0 makes it inf. For n samples of the
    right law over M modes the expected value is (M - 1) / (2 n), not 0.

    Args:
        labels: mode of each sample, integers [n] in [0, M).
        weights: how often each mode occurs in the reference [M], >= 0; normalised here.

    Raises:
        ValueError: for labels of another shape, type or range, or weights that are no distribution.
    """
    reference = _checked_weights(weights)
    share = _histogram(labels, len(reference))
    return _kl(share, reference.to(share.device))


def _histogram(labels: Tensor, count: int) -> Tensor:
    """Return the share [count] of samples per label, summing to 1."""
    labels = checked_labels(labels, count)
    return torch.bincount(labels, minlength=count).double() / len(labels)


def _entropy(share: Tensor) -> Tensor:
    """Return the entropy of a distribution [M] in nats."""
    return -torch.special.xlogy(share, share).sum()


def _kl(share: Tensor, reference: Tensor) -> Tensor:
    """Return KL(share || reference) of two distributions [M] in nats."""
    return (torch.special.xlogy(share, share) - torch.special.xlogy(share, reference)).sum().clamp(min=0)


def _checked_weights(weights: Tensor) -> Tensor:
    """Return `weights` [M] in float64, summing to 1."""
    weights = weights.detach().double()
    if weights.ndim != 1 or not weights.isfinite().all() or bool((weights < 0).any()) or not weights.sum() > 0:
        raise ValueError(
            f"weights hold one number >= 0 per mode, not all zero: got {list(weights.shape)}; pass shares or counts [M]"
        )
    return weights / weights.sum()


def _check_at_least_two(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(f"an entropy compares classes: expected {name} >= 2, got {count}")


def _check_share(min_share: float) -> None:
    if not 0 < min_share <= 1:
        raise ValueError(f"min_share is a part of what is there: expected it in (0, 1], got {min_share}")
