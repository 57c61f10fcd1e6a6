"""Power-function averages of weights over training, and any other length from stored ones afterwards.

The average of the weights theta(tau) over a run of t updates has the profile p(tau) = (gamma + 1) tau^gamma /
t^(gamma + 1) on [0, t] (EDM2, arXiv 2312.02696, section 3). Its length sigma_rel is the standard deviation of p over t:
the share of the run that counts, whatever the run's length. Time is counted in updates, and the weights of update k
hold on (k - 1, k].
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fdistill.core.distributed import local, part_of, whole
from fdistill.models.adapters import own_parameters

LONGEST = 12**-0.5
"""sigma_rel of the even average, gamma = 0."""
SHORTEST = 1e-3
"""That is looked for when the reconstructable range is asked."""
POOR, HOPELESS = 0.1, 0.3
"""Residuals of a reconstruction from which it is called poor, and refused."""
CUTOFF = 1e-13  # singular values below this share are rounding


class Profile(NamedTuple):
    """Which average: its length sigma_rel in (0, 12^-1/2], and the update t >= 1 that it was taken after."""

    length: float
    updates: int


class Combination(NamedTuple):
    """A linear combination of stored averages that stands for another one.

    Attributes:
        weights: of the stored averages, float64 [n]; they sum to 1.
        residual: L2 norm of the difference of the profiles over that of the profile wanted. For weights that fluctuate
            as white noise it is the error over the noise that the average itself keeps.
        gain: L2 norm of `weights`: how much it magnifies the rounding of what is stored.
    """

    weights: Tensor
    residual: float
    gain: float


class PowerEMA:
    """Averages of one network at several lengths, in float32 on its device; update it after the network's own steps.

    Attributes:
        lengths: sigma_rel of each.
        updates: so far.
        averages: for each length the parameters' averages (of a network with adapters, these alone), in the order of
            `network.named_parameters()`, and sharded as these are.
    """

    def __init__(self, network: nn.Module, lengths: Sequence[float]) -> None:
        """Args:
        network: what to average; the first update replaces all that it starts from.
        lengths: different ones, in (0, 12^-1/2].
        """
        self.lengths, self.updates = checked_lengths(lengths), 0
        self._gammas = [gamma_of(length) for length in self.lengths]
        own = own_parameters(network)
        self.names = list(own)
        self.averages = [[p.detach().float().clone() for p in own.values()] for _ in lengths]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move every average towards the network's present parameters."""
        self.updates += 1
        current = [local(parameter).float() for parameter in own_parameters(network).values()]
        for gamma, average in zip(self._gammas, self.averages, strict=True):
            torch._foreach_lerp_([local(a) for a in average], current, 1 - kept_share(self.updates, gamma))

    def restore(self, averages: Sequence[Sequence[Tensor]], updates: int) -> None:
        """Continue from the averages of a checkpoint, on any device."""
        for mine, saved in zip(self.averages, averages, strict=True):
            for average, value in zip(mine, saved, strict=True):
                average.copy_(part_of(value, average))
        self.updates = updates

    def wholes(self) -> list[list[Tensor]]:
        """Copies of the averages, whole, on the CPU; every rank has to ask."""
        return [[whole(value).to("cpu", copy=True) for value in average] for average in self.averages]

    def named(self) -> dict[float, dict[str, Tensor]]:
        """For each length the averages by the parameter's name, like `wholes`."""
        return {
            length: dict(zip(self.names, average, strict=True))
            for length, average in zip(self.lengths, self.wholes(), strict=True)
        }


def checked_lengths(lengths: Sequence[float]) -> tuple[float, ...]:
    """The lengths of averages to track; ValueError where there is none, one is twice there, or out of range."""
    if not lengths or len(set(lengths)) < len(lengths):
        raise ValueError(f"lengths of averages are different, and one at least: got {list(lengths)}")
    for length in lengths:
        gamma_of(length)
    return tuple(float(length) for length in lengths)


def gamma_of(length: float) -> float:
    """The exponent gamma >= 0 of a length: the largest root of (gamma + 2)^2 (gamma + 3) length^2 = gamma + 1.

    With x = gamma + 2 that is x^3 + x^2 - s x + s = 0, s = length^-2 >= 12: three real roots, by Viete's cosine.

    Raises:
        ValueError: for a length outside (0, 12^-1/2].
    """
    if not 0 < length <= LONGEST:
        raise ValueError(
            f"the length of an average is the standard deviation of its profile over the run's length: expected one in "
            f"(0, {LONGEST:.4f}], the end being the even average, got {length}"
        )
    s = length**-2
    p, q = -1 / 3 - s, 2 / 27 + 4 * s / 3  # of the depressed cubic in x + 1/3
    cosine = max(1.5 * q / p * math.sqrt(-3 / p), -1.0)
    return max(2 * math.sqrt(-p / 3) * math.cos(math.acos(cosine) / 3) - 7 / 3, 0.0)


def kept_share(updates: int, gamma: float) -> float:
    """beta = (1 - 1/t)^(gamma + 1): the share of the old average that stays at update t >= 1; 0 at the first.

    The weights of update k then count (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1): the integral of the
    profile over (k - 1, k], with no error of discretisation.
    """
    return (1 - 1 / updates) ** (gamma + 1)


def combine(stored: Sequence[Profile], wanted: Profile) -> Combination:
    """The combination of stored profiles, of weights that sum to 1, nearest to the wanted one in L2, in float64.

    The sum is fixed because weights that do not move must come out as they are; it costs next to no residual.

    Args:
        stored: at least one, all different.
        wanted: at any update.

    Raises:
        ValueError: where the residual exceeds `HOPELESS`, with the range of lengths that are within it.
    """
    if not stored:
        raise ValueError("an average is reconstructed from stored ones: got none")
    weights, residuals = _nearest(stored, [wanted])
    found = Combination(weights[:, 0], float(residuals[0]), float(weights[:, 0].norm()))
    if found.residual > HOPELESS:
        lengths = lengths_within(stored, wanted.updates, HOPELESS)
        within = f"a length in [{lengths[0]:.3g}, {lengths[1]:.3g}]" if lengths else "an update nearer to a stored one"
        raise ValueError(
            f"the average of length {wanted.length:g} at update {wanted.updates:,} is not in the {len(stored)} stored "
            f"ones (residual {found.residual:.2f}, at most {HOPELESS}): expected {within}; store more, or track it"
        )
    return found


def lengths_within(stored: Sequence[Profile], updates: int, residual: float = POOR) -> tuple[float, float] | None:
    """The shortest and the longest length that is reconstructed at an update within a residual; None for none."""
    grid = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), 400, dtype=torch.float64)
    lengths = sorted({*grid.clamp(max=LONGEST).tolist(), *(profile.length for profile in stored)})
    _, residuals = _nearest(stored, [Profile(length, updates) for length in lengths])
    good = [length for length, found in zip(lengths, residuals.tolist(), strict=True) if found <= residual]
    return (good[0], good[-1]) if good else None


def _nearest(stored: Sequence[Profile], wanted: Sequence[Profile]) -> tuple[Tensor, Tensor]:
    """Weights [n, m] of n stored profiles for m wanted ones of the same update, and their residuals [m].

    Least squares with one linear constraint, for stored profiles scaled to norm 1, in time over the wanted update.
    """
    unit = wanted[0].updates
    a, b = _columns(stored, unit), _columns(wanted, unit)
    norms, sizes = _inner_products(a, a).diagonal().sqrt(), _inner_products(b, b).diagonal().sqrt()
    cosines = _inner_products(a, a) / norms[:, None] / norms
    products = _inner_products(a, b) / norms[:, None]
    system = torch.nn.functional.pad(cosines, (0, 1, 0, 1))
    system[:-1, -1] = system[-1, :-1] = 1 / norms
    right = torch.cat([products, torch.ones_like(products[:1])])
    found = torch.linalg.lstsq(system, right, rcond=CUTOFF, driver="gelsd").solution[:-1]
    squared = sizes**2 - 2 * (found * products).sum(0) + (found * (cosines @ found)).sum(0)
    return found / norms[:, None], squared.clamp(min=0).sqrt() / sizes


def _columns(profiles: Sequence[Profile], unit: float = 1.0) -> tuple[Tensor, Tensor]:
    """gamma and t over `unit` of each, float64 [n]."""
    gammas = torch.tensor([gamma_of(profile.length) for profile in profiles], dtype=torch.float64)
    return gammas, torch.tensor([profile.updates / unit for profile in profiles], dtype=torch.float64)


def _inner_products(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """(gamma + 1) (delta + 1) / (gamma + delta + 1) (m/t)^gamma (m/u)^delta m / (t u), m = min(t, u); [n, m]."""
    (gamma, t), (delta, u) = (first[0][:, None], first[1][:, None]), second
    m = torch.minimum(t, u)
    powers = (gamma * (m / t).log() + delta * (m / u).log()).exp()
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * powers * m / (t * u)
