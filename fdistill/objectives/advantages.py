"""Advantages: how much better a sample is than others of its condition, over the samples of all ranks."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fdistill.models.condition import Condition

LARGEST = 5.0
"""Advantages are clipped to +- this many standard deviations."""

SMALLEST_STD = 1e-4
"""Rewards that differ by less are taken as equal: a saturated one has a standard deviation of rounding alone."""


def condition_keys(condition: Condition, n: int) -> Tensor:
    """One number for each of n samples, equal where conditions are, up to zeros at the end; int64 [n] on the CPU."""
    rows = [hashlib.blake2b(digest_size=8) for _ in range(n)]
    for name in sorted(condition):
        values = condition[name].detach().to("cpu").contiguous()
        values = values.float() if values.dtype == torch.bfloat16 else values  # which numpy does not know
        for row, value in zip(rows, values.numpy(), strict=True):
            content = value.tobytes().rstrip(b"\0")  # a prompt's padding is zeros, as many as its batch needs
            row.update(len(content).to_bytes(8, "little") + content)
    numbers = [int.from_bytes(row.digest(), "little", signed=True) for row in rows]
    return torch.tensor(numbers, dtype=torch.int64)


def group_advantages(rewards: Tensor, keys: Tensor) -> Tensor:
    """(r - mean) / std over the samples of the same key, clipped; float32 [N] (arXiv 2505.05470).

    Args:
        rewards: [N], finite.
        keys: int64 [N].

    Raises:
        ValueError: where a key has one sample only.
    """
    groups, index, counts = keys.unique(return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError(
            "an advantage compares samples of one condition: expected a group of at least 2, got 1 sample of "
            f"{int((counts < 2).sum())} conditions; raise group"
        )
    rewards = rewards.double()
    mean = torch.zeros(len(groups), dtype=torch.float64).index_add(0, index, rewards) / counts
    variance = torch.zeros_like(mean).index_add(0, index, (rewards - mean[index]).square()) / counts
    return _clipped((rewards - mean[index]) / variance.sqrt().clamp_min(SMALLEST_STD)[index])


class RunningAdvantages:
    """(r - mean) / std over the last rewards of the same key (DDPO's per-prompt statistics, arXiv 2305.13301).

    A key that has been seen fewer than `buffer` times is compared with all samples of the rollout.
    """

    def __init__(self, buffer: int) -> None:
        """Args:
        buffer: rewards that are kept of each key, >= 2.
        """
        if buffer < 2:
            raise ValueError(f"a running mean and std are of at least 2 rewards: expected buffer >= 2, got {buffer}")
        self.buffer = buffer
        self._seen: dict[int, list[float]] = {}

    def __call__(self, rewards: Tensor, keys: Tensor) -> Tensor:
        """Add these rewards [N] of these keys, and return their advantages, float32 [N].

        Raises:
            ValueError: for a rollout of one sample.
        """
        if len(rewards) < 2:
            raise ValueError("an advantage compares samples: expected a rollout of at least 2, got a group of one")
        rewards = rewards.double()
        for key, reward in zip(keys.tolist(), rewards.tolist(), strict=True):
            self._seen[key] = [*self._seen.get(key, []), reward][-self.buffer :]
        advantages = torch.empty_like(rewards)
        for key in keys.unique().tolist():
            seen = torch.tensor(self._seen[key], dtype=torch.float64)
            known = seen if len(seen) == self.buffer else rewards
            of_key = keys == key
            std = known.std(correction=0).clamp_min(SMALLEST_STD)
            advantages[of_key] = (rewards[of_key] - known.mean()) / std
        return _clipped(advantages)

    def state_dict(self) -> dict[str, list[float]]:
        """The rewards that are kept, by key."""
        return {str(key): values for key, values in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Go on with them."""
        self._seen = {int(key): list(values) for key, values in state.items()}


def _clipped(advantages: Tensor) -> Tensor:
    return advantages.clamp(-LARGEST, LARGEST).float()
