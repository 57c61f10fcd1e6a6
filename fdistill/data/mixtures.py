"""Gaussian mixtures: data whose every statistic has a closed form, for counting modes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fdistill.core.random import generator_for
from fdistill.data.base import GenerativeDataModule, require_at_least
from fdistill.data.batches import InMemorySplit
from fdistill.models.networks import GaussianMixture

_CHUNK = 16_384  # points compared with all modes at once

_OPTIONS = {  # what each kind takes, with its defaults
    "ring": {"num_modes": 8, "radius": 2.0, "std": 0.1, "weights": None},
    "grid": {"side": 5, "spacing": 1.0, "std": 0.1, "weights": None},
    "forty": {},
}


class MixtureParameters(NamedTuple):
    """sum_i weights_i N(means_i, stds_i^2 I), all in float64."""

    means: Tensor  # [M, d]
    stds: Tensor  # [M], > 0
    weights: Tensor  # [M], >= 0, sum 1


class GaussianMixtureData(GenerativeDataModule):
    """Samples of a Gaussian mixture in the plane, labelled with their mode.

    Arguments that the chosen kind does not take must stay ``None``; those it takes have the defaults named here.

    Args:
        kind: ``ring`` and ``grid`` are built from the arguments below; ``forty`` is the benchmark ``forty_modes``.
        num_modes: Modes on the ring, >= 1; default 8.
        radius: Radius of the ring, > 0; default 2.
        side: Modes along each side of the grid, >= 1; default 5.
        spacing: Distance of neighbours on the grid, > 0; default 1.
        std: Standard deviation of every mode along each axis, > 0; default 0.1.
        weights: Relative weights of the modes, >= 0, for ring and grid; default equal.
        num_samples: Size of the training split, >= 1.
        num_held_out: Size of the held-out split, >= 1.
        batch_size: Samples per batch and rank, >= 1.
        split_seed: Seed of the samples themselves, >= 0.
        seed: Seed of the order of the training stream, >= 0.
        num_workers: Processes that fetch batches, >= 0.

    Raises:
        ValueError: An argument is out of its range, or not one that the kind takes.
    """

    def __init__(
        self,
        kind: Literal["ring", "grid", "forty"] = "ring",
        num_modes: int | None = None,
        radius: float | None = None,
        side: int | None = None,
        spacing: float | None = None,
        std: float | None = None,
        weights: list[float] | None = None,
        num_samples: int = 50_000,
        num_held_out: int = 10_000,
        batch_size: int = 256,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        require_at_least(1, num_samples=num_samples, num_held_out=num_held_out)
        require_at_least(0, split_seed=split_seed)
        self.kind, self._num_modes, self.radius, self.side, self.spacing = kind, num_modes, radius, side, spacing
        self.std, self.weights = std, None if weights is None else [float(w) for w in weights]
        self.num_samples, self.num_held_out, self.split_seed = num_samples, num_held_out, split_seed
        self._parameters = self._build()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(d,), the dimension of the space."""
        return (self._parameters.means.shape[1],)

    @property
    def num_classes(self) -> int:
        """Number of modes."""
        return len(self._parameters.weights)

    def spec(self) -> dict[str, Any]:
        """Return the spec with the ``num_modes`` that was given, which only a ring takes."""
        spec = super().spec()
        spec["init_args"]["num_modes"] = self._num_modes
        return spec

    def parameters(self) -> MixtureParameters:
        """Return the mixture."""
        return self._parameters

    def read_modes(self, x: Tensor) -> Tensor:
        """Return the ``nearest_mode`` of each point [n, d], int64 [n]; never -1, since every point has one.

        Raises:
            ValueError: The points are of another dimension, or one is NaN or infinite.
        """
        broken = int((~x.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            raise ValueError(
                f"a point has finite coordinates: expected 0 broken ones, got {broken} of {len(x)};"
                " look for the NaN where they are made"
            )
        return torch.cat([nearest_mode(part, self._parameters) for part in x.split(_CHUNK)])

    def exact_network(self) -> GaussianMixture:
        """Return the posterior mean of the mixture, whose modes of weight 0 are left out."""
        means, stds, weights = (values[self._parameters.weights > 0].tolist() for values in self._parameters)
        return GaussianMixture(means, stds, weights)

    def load_splits(self) -> tuple[InMemorySplit, InMemorySplit]:
        """Draw the two splits."""
        return self._drawn(self.num_samples, 0), self._drawn(self.num_held_out, 1)

    def _drawn(self, n: int, split: int) -> InMemorySplit:
        x, labels = sample_mixture(self._parameters, n, generator_for(self.split_seed, split))
        return InMemorySplit(x.float(), labels)

    def _build(self) -> MixtureParameters:
        if self.kind not in _OPTIONS:
            raise ValueError(f"kind names a mixture: expected one of {list(_OPTIONS)}, got {self.kind!r}; choose one")
        takes = _OPTIONS[self.kind]
        names = ("radius", "side", "spacing", "std", "weights")
        options = {"num_modes": self._num_modes, **{name: getattr(self, name) for name in names}}
        given = {name: value for name, value in options.items() if value is not None}
        foreign = sorted(set(given) - set(takes))
        if foreign:
            raise ValueError(
                f"{self.kind!r} takes only its own options: expected {list(takes)}, got {foreign}; drop them"
            )
        kinds: dict[str, Callable[..., MixtureParameters]] = {"ring": ring, "grid": grid, "forty": forty_modes}
        return kinds[self.kind](**{**takes, **given})


def ring(num_modes: int, radius: float, std: float, weights: Sequence[float] | None = None) -> MixtureParameters:
    """Return modes at equal angles on a circle around 0, the first on the positive x axis."""
    require_at_least(1, num_modes=num_modes)
    _require_positive("radius", radius)
    angle = torch.arange(num_modes, dtype=torch.float64) * (2 * math.pi / num_modes)
    return _mixture(radius * torch.stack([angle.cos(), angle.sin()], dim=1), std, weights)


def grid(side: int, spacing: float, std: float, weights: Sequence[float] | None = None) -> MixtureParameters:
    """Return side^2 modes on a square lattice centred at 0; the y coordinate of the means varies fastest."""
    require_at_least(1, side=side)
    _require_positive("spacing", spacing)
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return _mixture(torch.cartesian_prod(axis, axis), std, weights)


def forty_modes() -> MixtureParameters:
    """Return the 40-mode benchmark of Midgley et al. 2023 ("Flow annealed importance sampling bootstrap").

    Means are uniform in [-40, 40]^2, drawn by torch's CPU generator with seed 0 as in the authors' code; the standard
    deviation is softplus(1) = 1.3133; the weights are equal.
    """
    uniform = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    return _mixture((uniform.double() - 0.5) * 80, float(softplus(torch.ones((), dtype=torch.float64))), None)


def sample_mixture(
    parameters: MixtureParameters, num_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw samples [N, d] in float64 and their modes [N]."""
    labels = torch.multinomial(parameters.weights, num_samples, replacement=True, generator=generator)
    noise = torch.randn(num_samples, parameters.means.shape[1], generator=generator, dtype=torch.float64)
    return parameters.means[labels] + parameters.stds[labels, None] * noise, labels


def nearest_mode(x: Tensor, parameters: MixtureParameters) -> Tensor:
    """Return the mode [B] of largest posterior probability given x [B, d]: argmax_i w_i N(x; m_i, s_i^2 I)."""
    means, stds, weights = (p.to(x.device) for p in parameters)
    if x.dim() != 2 or x.shape[1] != means.shape[1]:
        raise ValueError(f"x holds points of the mixture's space: expected [B, {means.shape[1]}], got {tuple(x.shape)}")
    distance = (x.double()[:, None, :] - means).square().sum(dim=2)
    log_joint = weights.log() - means.shape[1] * stds.log() - distance / (2 * stds.square())
    return log_joint.argmax(dim=1)


def _mixture(means: Tensor, std: float, weights: Sequence[float] | None) -> MixtureParameters:
    _require_positive("std", std)
    num_modes = len(means)
    w = (
        torch.ones(num_modes, dtype=torch.float64)
        if weights is None
        else torch.tensor(list(weights), dtype=torch.float64)
    )
    if len(w) != num_modes:
        raise ValueError(f"weights hold one number per mode: expected {num_modes}, got {len(w)}; weigh each mode")
    if not torch.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"weights are finite, >= 0 and not all 0: got {w.tolist()}; their sum does not matter")
    return MixtureParameters(means, torch.full((num_modes,), std, dtype=torch.float64), w / w.sum())


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is a length: expected a finite {name} > 0, got {value}; give a positive number")
