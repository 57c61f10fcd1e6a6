"""Counter-based randomness: a seed and counters (step, rank, epoch), or a latent, name a stream; no state is kept."""

import hashlib

import torch
from torch import Tensor

VALIDATION = int.from_bytes(b"validate", "big")
"""Counter of the streams beside training, whose second counter is a turn and never reaches it."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def fold_seed(*integers: int) -> int:
    """Mix integers into one seed; the order and the number of integers matter.

    Each integer is added to the running hash, which then goes through the finaliser of splitmix64 (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators").

    Args:
        integers: At least one integer in [-2^63, 2^64), e.g. ``(seed, step, rank)``.

    Returns:
        A seed in [0, 2^63).

    Raises:
        ValueError: No integer was given, or one lies outside 64 bits.
    """
    if not integers:
        raise ValueError("fold_seed mixes integers into a seed: expected at least one, got none; pass the run's seed")
    state = 0
    for integer in integers:
        if not -(1 << 63) <= integer <= _MASK:
            raise ValueError(
                f"fold_seed takes 64-bit integers: expected [-2^63, 2^64), got {integer}; use a smaller one"
            )
        state = _finalise((state + _GOLDEN + integer) & _MASK)
    return state >> 1


def generator_for(seed: int, *counters: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator whose stream is a pure function of the seed, the counters and the kind of device.

    Torch's CPU generator reads only the low 32 bits of a seed, so among n CPU streams about n^2 / 2^33 pairs coincide.

    Args:
        seed: Seed of the run.
        counters: What tells this stream from the others, e.g. ``step, rank``.
        device: Device on which the numbers will be drawn.
    """
    return torch.Generator(device=device).manual_seed(fold_seed(seed, *counters))


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU as torch seeds it, which stock pipelines are given.

    Raises:
        ValueError: for a seed that is no integer in [-2^63, 2^64).
    """
    if not hasattr(seed, "__index__") or not -(1 << 63) <= seed <= _MASK:  # an int, or one of numpy
        raise ValueError(f"a seed is an integer in [-2^63, 2^64): got {seed!r}")
    return torch.Generator().manual_seed(int(seed))


class LatentStreams:
    """Noise that is drawn beside latents: each one's stream is named by a hash of its own numbers in single precision.

    So what is made of a latent depends on nothing else: not on the batch it is in, nor on rank, device or precision.
    The numbers are drawn on the CPU.
    """

    def __init__(self, latents: Tensor) -> None:
        """Args:
        latents: [B, *shape], at least one number each.
        """
        rows = latents.detach().to("cpu", torch.float32).contiguous().numpy()
        hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
        self._generators = [generator_for(int.from_bytes(digest, "little")) for digest in hashes]
        self._like = latents

    def normal(self) -> Tensor:
        """The next standard normal numbers of every stream, of the latents' shape, precision and device."""
        shape = self._like.shape[1:]
        drawn = [torch.randn(shape, generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(self._like) if drawn else torch.empty_like(self._like)


def _finalise(z: int) -> int:
    """Scramble 64 bits, one to one (finaliser of splitmix64)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
