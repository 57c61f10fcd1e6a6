"""Kinetic energy of Gaussian paths, and what a teacher knows of its own path of least energy (arXiv 2306.06626)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.models.denoiser import Denoiser
from fdistill.theory.loss_weights import edm_weight
from fdistill.theory.paths import KineticOptimal, Path

_NODES = 20_000


class Shares(NamedTuple):
    """Lambda(theta), the share of the tangential velocity that a noisy sample tells, as measured.

    angles: theta in radians, rising, [A] float64.
    shares: Lambda at each angle, unclipped, [A] float64.
    standard_errors: of each share, [A] float64; samples and noise are the same at all angles, so errors are too.
    """

    angles: Tensor
    shares: Tensor
    standard_errors: Tensor


@torch.no_grad()
def estimate_shares(
    denoiser: Denoiser,
    x_0: Tensor,
    labels: Tensor | None,
    sigma_data: float,
    generator: torch.Generator,
    num_angles: int = 64,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    batch_size: int = 500,
) -> Shares:
    """Lambda = 1 - (EDM-weighted denoising loss per entry) in the middle of equal parts of the angle.

    A sample meets the same noise at every angle, sigma = sigma_data cot theta, so the estimate is smooth in theta.
    A teacher worse than E[x_0 | x] makes it too small.

    Args:
        denoiser: the teacher, in evaluation mode.
        x_0: held-out samples, [n, *sample_shape], n >= 2.
        labels: int64 [n]; None without classes.
        sigma_data: root mean square of the data, > 0.
        generator: of the noise.
        num_angles: A >= 2, how many parts there are between the angles of two noise levels.
        sigma_min: the lower one, > 0; the teacher is asked for nothing outside of what it was trained on.
        sigma_max: the higher one, > sigma_min.
        batch_size: samples evaluated at once.

    Raises:
        ValueError: for fewer than two samples or angles, noise levels out of order, or a loss that is not finite.
    """
    if len(x_0) < 2 or num_angles < 2:
        raise ValueError(f"shares need at least two samples and two angles: got {len(x_0)} and {num_angles}")
    if not (0 < sigma_min < sigma_max < math.inf and sigma_data > 0):
        raise ValueError(
            f"shares need 0 < sigma_min < sigma_max, finite, and sigma_data > 0: got {sigma_min}, {sigma_max} and "
            f"{sigma_data}"
        )
    denoiser.noise_range.check("each of sigma_min and sigma_max", [sigma_min, sigma_max])
    first, last = (math.atan(sigma_data / sigma) for sigma in (sigma_max, sigma_min))
    angles = first + (last - first) * (torch.arange(num_angles, dtype=torch.float64) + 0.5) / num_angles
    noise = torch.randn(x_0.shape, generator=generator, device=generator.device, dtype=x_0.dtype).to(x_0)
    losses = torch.stack([_loss(denoiser, x_0, noise, labels, sigma_data, theta, batch_size) for theta in angles])
    if not losses.isfinite().all():
        raise ValueError("the teacher's denoising loss is not finite at some noise level: check teacher and data")
    return Shares(angles, 1 - losses.mean(dim=1), losses.std(dim=1) / math.sqrt(len(x_0)))


def _loss(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Tensor,
    labels: Tensor | None,
    sigma_data: float,
    theta: Tensor,
    batch_size: int,
) -> Tensor:
    """EDM-weighted loss per entry of each sample at an angle, [n] float64 on the CPU.

    The power of the tangential velocity y = cos theta x_0 / sigma_data - sin theta eps, whose mean over the noise is
    known, is a control variate: at little noise the loss is nearly that of eps, which tells nothing.
    """
    sigma = sigma_data / theta.tan()
    errors = []
    for start in range(0, len(x_0), batch_size):
        part = slice(start, start + batch_size)
        level = sigma.to(x_0).expand(len(x_0[part]))
        x = x_0[part] + level[0] * noise[part]
        errors.append(denoiser(x, level, None if labels is None else labels[part]) - x_0[part])
    loss = edm_weight(sigma, sigma_data) * _power(torch.cat(errors))
    cosine, sine = math.cos(theta), math.sin(theta)
    expected = cosine**2 * _power(x_0) / sigma_data**2 + sine**2
    surplus = _power(cosine / sigma_data * x_0 - sine * noise) - expected
    spread = surplus.square().sum().clamp_min(torch.finfo(surplus.dtype).tiny)
    return loss - (loss * (surplus - surplus.mean())).sum() / spread * surplus


def _power(x: Tensor) -> Tensor:
    """Mean square over the entries of each sample."""
    return x.square().flatten(1).mean(dim=1).cpu().double()


def kinetic_energy(
    path: Path,
    angles: Sequence[float],
    shares: Sequence[float],
    sigma_data: float,
    t_min: float = 0.0,
    t_max: float = 1.0,
) -> float:
    """int E|u|^2 dt per entry, in units of sigma_data^2, of the marginal velocity u of a Gaussian path.

    = int r'^2 + r^2 theta'^2 Lambda(theta) dt for alpha = r sin theta, sigma = sigma_data r cos theta
    (arXiv 2306.06626), by the midpoint rule at 20,000 nodes that crowd towards both ends.

    Args:
        path: any.
        angles: theta in radians; see `KineticOptimal`, which interpolates here too.
        shares: Lambda at each.
        sigma_data: root mean square of the data, > 0.
        t_min: where the integral begins, at the data.
        t_max: where it ends.

    Raises:
        ValueError: where sigma grows as the root of t from t_min = 0, which costs infinite energy.
    """
    table = KineticOptimal(angles, shares, sigma_data)
    if not 0 <= t_min < t_max:
        raise ValueError(f"energy is spent between two times: expected 0 <= t_min < t_max, got {t_min} and {t_max}")
    if not all(slope.isfinite() for slope in path.derivatives(torch.tensor(t_min, dtype=torch.float64))):
        raise ValueError(
            f"the energy of {type(path).__name__} from t = {t_min:g} is infinite: sigma grows there as the root of t; "
            "give t_min = path.time(sigma_min)"
        )
    u = (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
    share_of_span = u**4 * (35 - 84 * u + 70 * u**2 - 20 * u**3)  # its slope is 140 u^3 (1 - u)^3
    t = t_min + (t_max - t_min) * share_of_span.clamp_max(1)
    weight = (t_max - t_min) * 140 * (u * (1 - u)) ** 3 / _NODES
    signal, noise = path.alpha(t), path.sigma(t) / sigma_data
    signal_slope, noise_slope = path.derivatives(t)
    noise_slope = noise_slope / sigma_data
    radial = signal * signal_slope + noise * noise_slope  # r r'
    tangential = signal_slope * noise - signal * noise_slope  # r^2 theta'
    share = table.share(torch.atan2(signal, noise))
    return float(((radial.square() + tangential.square() * share) / (signal.square() + noise.square()) * weight).sum())
