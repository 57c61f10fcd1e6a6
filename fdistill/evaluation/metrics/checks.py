"""What every metric asks of its input, in one place: a metric of broken samples must stop, not return a number."""

from torch import Tensor


def check_tensor(name: str, value: object) -> None:
    """Raise ValueError for anything but a tensor of real numbers: an array, a list, complex numbers."""
    if not isinstance(value, Tensor) or value.is_complex():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} is a torch tensor of real numbers: got {got}; torch.as_tensor(...) makes one of an array"
        )


def checked_features(name: str, features: Tensor, minimum: int = 2) -> Tensor:
    """Return `features` [n, d] detached and in float64.

    Raises ValueError when they are not a matrix, hold fewer than `minimum` rows, or hold a NaN or an infinity.
    """
    check_tensor(name, features)
    if features.ndim != 2 or features.shape[1] < 1:
        raise ValueError(
            f"{name} is a matrix of one feature row per sample: expected [n, d], got {list(features.shape)}; "
            "flatten(1) the samples"
        )
    if len(features) < minimum:
        raise ValueError(f"{name} needs at least {minimum} samples, got {len(features)}; generate more")
    broken = int((~features.isfinite()).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"{name} holds finite numbers: expected 0 broken rows, got {broken} of {len(features)}; "
            "look for the NaN where the samples are made"
        )
    return features.detach().double()


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Return `labels` [n] as int64, each in [0, `count`); raises ValueError for any other."""
    check_tensor("labels", labels)
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels hold one whole number per sample: expected an integer tensor [n] with n >= 1, "
            f"got {labels.dtype} {list(labels.shape)}; take the argmax of logits first"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"labels lie in [0, {count}): got {low} to {high}; count the classes again or drop the unlabelled samples"
        )
    return labels.detach().long()
