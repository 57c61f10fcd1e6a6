"""The Gaussian path of least kinetic energy for given data (arXiv 2306.06626)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdistill.theory.paths.base import Path

LEAST_SHARE = 1e-4  # where no energy is spent a time would not be defined
_END = math.pi / 2


class KineticOptimal(Path):
    """The time change of Gaussian paths whose marginal flow moves with the least mean square velocity.

    In polar coordinates alpha = r cos psi, sigma = sigma_data r sin psi, the velocity has the energy
    r'^2 + r^2 psi'^2 Lambda per entry, where Lambda in [0, 1] is the share of the tangential velocity that x_t tells:
    1 - (EDM-weighted denoising loss per entry at sigma = sigma_data cot theta), with theta = pi/2 - psi from noise
    (0) to data (pi/2). Measured by phi = int sqrt(Lambda) d theta the plane is flat and the optimum a straight chord,
    r e^(i phi) = t + (1 - t) e^(i Phi), Phi the whole length; its energy is 2 - 2 cos Phi. Lambda = 1 is rectified
    flow in units of sigma_data. Source: Shaul et al. 2023, with time turned round; sqrt(Lambda) is linear between the
    given angles, so that phi and its inverse are closed forms.
    """

    def __init__(self, angles: Sequence[float], shares: Sequence[float], sigma_data: float = 1.0) -> None:
        """Args:
        angles: theta in radians, rising in [0, pi/2], at least one.
        shares: Lambda at each angle, clipped to [1e-4, 1]; beyond the outermost angles theirs holds.
        sigma_data: root mean square of the data, > 0.
        """
        theta, values = (torch.tensor(list(given), dtype=torch.float64) for given in (angles, shares))
        if theta.shape != values.shape or not (theta.ndim == 1 and len(theta)) or not values.isfinite().all():
            raise ValueError(
                f"Lambda is one finite number for each of at least one angle: got {len(theta)} angles and shares "
                f"{values.tolist()}"
            )
        if not (theta.diff() > 0).all() or not 0 <= theta[0] <= theta[-1] <= _END + 1e-6:
            raise ValueError(f"angles rise strictly from 0 (noise) to pi/2 (data): got {theta.tolist()}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is the root mean square of the data and positive: got {sigma_data}")
        self.sigma_data = sigma_data
        psi, root = (_END - theta).clamp_min(0).flip(0), values.clamp(LEAST_SHARE, 1).sqrt().flip(0)
        before, after = psi[:1] > 0, psi[-1:] < _END  # the ends, where they were not given
        zero, end = torch.zeros(1, dtype=torch.float64), torch.full((1,), _END, dtype=torch.float64)
        psi = torch.cat([zero[before], psi, end[after]])
        root = torch.cat([root[:1][before], root, root[-1:][after]])
        omega = torch.cat([zero, torch.cumulative_trapezoid(root, psi)])  # exact: the root is linear
        self.length = float(omega[-1])
        """Phi, int_0^(pi/2) sqrt(Lambda) d theta, in radians; at most pi/2."""
        tables = {"psi": psi, "omega": omega, "root": root, "slope": root.diff() / psi.diff()}
        self._tables = {(name, "cpu", torch.float64): values for name, values in tables.items()}

    @property
    def energy(self) -> float:
        """2 - 2 cos Phi: the kinetic energy per entry, in units of sigma_data^2."""
        return 4 * math.sin(self.length / 2) ** 2

    def share(self, angle: Tensor) -> Tensor:
        """Lambda at angles theta in [0, pi/2], as interpolated."""
        psi = (_END - angle).clamp(0, _END)
        knots, _, root, slope = self._knots(psi, "psi", "omega")
        return (root + slope * (psi - knots)).square()

    def alpha(self, t: Tensor) -> Tensor:
        radius, (_, cosine, _) = self._radius(t), self._turned(t)
        return radius * cosine

    def sigma(self, t: Tensor) -> Tensor:
        radius, (sine, _, _) = self._radius(t), self._turned(t)
        return self.sigma_data * radius * sine

    def time(self, noise_ratio: Tensor) -> Tensor:
        psi = torch.atan(noise_ratio / self.sigma_data)
        knot, omega, root, slope = self._knots(psi, "psi", "omega")
        step = psi - knot
        omega = omega + step * (root + slope * step / 2)
        noise, data = omega.sin(), (self.length - omega).clamp_min(0).sin()  # law of sines
        return noise / (noise + data)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        radius, (sine, cosine, root) = self._radius(t), self._turned(t)
        growth = (2 * t - 1) * (1 - math.cos(self.length)) / radius
        turn = math.sin(self.length) / (radius * root)  # r psi', since r^2 omega' = sin Phi on a chord
        return growth * cosine - turn * sine, self.sigma_data * (growth * sine + turn * cosine)

    def _radius(self, t: Tensor) -> Tensor:
        return (1 - 2 * t * (1 - t) * (1 - math.cos(self.length))).sqrt()

    def _turned(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sin psi, cos psi and sqrt(Lambda) where the chord is at t."""
        omega = torch.atan2(t * math.sin(self.length), 1 - t + t * math.cos(self.length))
        knot, psi, root, slope = self._knots(omega, "omega", "psi")
        ahead = omega - knot
        there = (root.square() + 2 * slope * ahead).clamp_min(LEAST_SHARE).sqrt()
        psi = psi + 2 * ahead / (root + there)
        return psi.sin(), (_END - psi).clamp_min(0).sin(), there

    def _knots(self, place: Tensor, along: str, other: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the interval of `along` that holds a place begins, what `other` is there, sqrt(Lambda) and its slope.

        `along` and `other` are "psi" and "omega", in either order; the slope is in psi.
        """
        tables = [self._table(name, place) for name in (along, other, "root", "slope")]
        found = torch.searchsorted(tables[0], place.detach().contiguous(), right=True) - 1
        index = found.clamp(0, len(tables[-1]) - 1)
        knot, value, root, slope = (values[index] for values in tables)
        return knot, value, root, slope

    def _table(self, name: str, like: Tensor) -> Tensor:
        """Copied once to each device and type that asks."""
        key = (name, str(like.device), like.dtype)
        if key not in self._tables:
            self._tables[key] = self._tables[name, "cpu", torch.float64].to(like.device, like.dtype)
        return self._tables[key]
