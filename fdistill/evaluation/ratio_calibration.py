"""Is a log ratio right? Its reliability, from samples alone.

An optimal logit l = ln p/q passes three tests that need no exact ratio: among samples with logit l the share of real
ones over that of generated ones is e^l; E_q[e^l] = 1; E_p[e^-l] = 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fdistill.theory.noise_levels import NoiseLevels

_BATCH = 1024  # samples a call of the logit


class Estimate(NamedTuple):
    """A number from samples, and what it would vary by with others."""

    value: float
    standard_error: float


class Reliability(NamedTuple):
    """Predicted against observed log ratio, K logit bins from low to high, float64 on the CPU; and the summary."""

    predicted: Tensor  # [K]: the log ratio of shares that the logits of the bin promise
    observed: Tensor  # [K]: ln((real samples in the bin / all real) / (generated in the bin / all generated))
    standard_error: Tensor  # [K]: of the observed one, given how many samples the bin holds
    slope: Estimate  # of the true log ratio over the logit: 1 if right, below 1 if logits are too large
    offset: Estimate  # of the true log ratio where the logit is 0: 0 if right
    calibration_error: float  # mean over bins of |observed - predicted| probability of being real, in [0, 1]
    calibration_floor: float  # what an exact log ratio would have on average, by the noise of the counts
    mean_ratio: Estimate  # E_q[e^l]: 1 if right; the standard error of a heavy tail is too small
    mean_inverse: Estimate  # E_p[e^-l]: 1 if right

    def numbers(self) -> dict[str, float]:
        """The summary under plain names, for a log or a JSON file."""
        found = {"calibration_error": self.calibration_error, "calibration_floor": self.calibration_floor}
        for name in ("slope", "offset", "mean_ratio", "mean_inverse"):
            estimate = getattr(self, name)
            found |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
        return found


@torch.no_grad()
def reliability(fake_logit: Tensor, real_logit: Tensor, num_bins: int = 15) -> Reliability:
    """Compare logits with how often samples that have them are real; no exact ratio is needed.

    All samples are sorted into bins of equal count by their logit; equal logits stay together, so that there may be
    fewer bins than asked for. The prediction of a bin is its mean probability of being real, as a log ratio of shares:
    unlike the mean logit it is exact for an exact log ratio however wide the bin. The observed ratio has half a sample
    added to each side, and the standard error sqrt(1 / (real + 1/2) + 1 / (generated + 1/2)) (Haldane and Anscombe),
    so that neither is infinite where a side has none. Slope and offset are the maximum likelihood fit of the log odds
    of being real, linear in the logit (Cox 1958, Biometrika 45), without bins; they are NaN where no line is the most
    likely one: all logits are equal, or those of one side are all above those of the other.

    Args:
        fake_logit: of generated samples, [n].
        real_logit: of real samples, [m].
        num_bins: at least 1.

    Raises:
        ValueError: for an empty side, other shapes, a logit that is not finite, or no bin.
    """
    _check_logits(fake_logit, real_logit)
    if num_bins < 1:
        raise ValueError(f"a reliability needs at least 1 bin: got {num_bins}")
    fake, real = fake_logit.double().cpu(), real_logit.double().cpu()
    pooled = torch.cat([fake, real]).sort().values
    edges = pooled[torch.arange(1, num_bins) * len(pooled) // num_bins].unique()
    edges = edges[edges > pooled[0]]
    # sklearn.calibration.calibration_curve has no counts, and rounds probabilities to 0 and 1
    bins = (torch.bucketize(side, edges, right=True) for side in (fake, real))
    fakes, reals = (index.bincount(minlength=len(edges) + 1).double() for index in bins)
    prior, total = math.log(len(real) / len(fake)), fakes + reals
    log_odds = torch.stack([_log_odds(inside + prior) for inside in pooled.split(total.long().tolist())])
    promised = log_odds.sigmoid()
    noise = (promised * (1 - promised) / total).sqrt() * math.sqrt(2 / math.pi)  # E|x| of a Gaussian
    slope, offset = _most_likely_line(fake, real, prior)
    return Reliability(
        log_odds - prior,
        ((reals + 0.5) / (fakes + 0.5)).log() - prior,
        (1 / (reals + 0.5) + 1 / (fakes + 0.5)).sqrt(),
        slope,
        offset,
        float((total * (reals / total - promised).abs()).sum() / total.sum()),
        float((total * noise).sum() / total.sum()),
        _mean(fake.exp()),
        _mean((-real).exp()),
    )


class NoiseGroup(NamedTuple):
    """Reliability of the samples between two noise levels, and their logits."""

    lowest: float  # sigma
    highest: float
    reliability: Reliability
    fake_logit: Tensor  # [n]
    real_logit: Tensor  # [m]


class NoisedLogits(NamedTuple):
    """Noised samples and their logits."""

    x_t: Tensor  # [n, *sample_shape]
    sigma: Tensor  # [n]
    logit: Tensor  # [n]


@torch.no_grad()
def noised_logits(
    logit_of: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x_0: Tensor,
    labels: Tensor | None,
    noise_levels: NoiseLevels,
    generator: torch.Generator,
) -> NoisedLogits:
    """Noise clean samples at drawn levels and ask for their logits, batch by batch.

    Args:
        logit_of: (x_t, sigma, labels) to logits [B].
        x_0: clean samples [n, *sample_shape].
        labels: their classes [n], or None.
        noise_levels: the law of sigma.
        generator: of levels and noise, on the device of x_0.
    """
    sigma = noise_levels.sample(len(x_0), generator, x_0.device).to(x_0.dtype)
    noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    x_t = x_0 + sigma.reshape(-1, *[1] * (x_0.ndim - 1)) * noise
    classes = [None] * len(x_t) if labels is None else labels.split(_BATCH)
    parts = zip(x_t.split(_BATCH), sigma.split(_BATCH), classes, strict=False)
    return NoisedLogits(x_t, sigma, torch.cat([logit_of(*part) for part in parts]))


def reliability_by_noise(
    fake: NoisedLogits, real: NoisedLogits, noise_levels: NoiseLevels, groups: int = 3, num_bins: int = 15
) -> list[NoiseGroup]:
    """Reliability within groups of the noise level that are equally likely, from low noise to high.

    Args:
        fake: generated samples.
        real: real samples, noised by the same law.
        noise_levels: that law.
        groups: at least 1; with 1, all noise levels together.
        num_bins: logit bins of each.

    Raises:
        ValueError: for no group, or a group in which a side has no sample.
    """
    if groups < 1:
        raise ValueError(f"reliability by noise needs at least 1 group: got {groups}")
    found = []
    for i in range(groups):
        sides = []
        for side in (fake, real):
            group = (noise_levels.cdf(side.sigma.double()) * groups).long().clamp(0, groups - 1)
            sides.append((side.sigma[group == i], side.logit[group == i]))
        (fake_sigma, fake_logit), (real_sigma, real_logit) = sides
        measured = reliability(fake_logit, real_logit, num_bins)
        sigma = torch.cat([fake_sigma, real_sigma])
        found.append(NoiseGroup(float(sigma.min()), float(sigma.max()), measured, fake_logit, real_logit))
    return found


def _check_logits(*sides: Tensor) -> None:
    for side in sides:
        if side.ndim != 1 or not len(side) or not side.isfinite().all():
            raise ValueError(
                f"a reliability needs one finite logit for each of at least 1 sample a side: got {list(side.shape)}, "
                f"{int((~side.isfinite()).sum())} of them not finite; look for NaN in the run"
            )


def _log_odds(logit: Tensor) -> Tensor:
    """Log odds of the mean probability, without rounding to 0 or 1."""
    return F.logsigmoid(logit).logsumexp(0) - F.logsigmoid(-logit).logsumexp(0)


def _mean(values: Tensor) -> Estimate:
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(float(values.mean()), float(error))


def _most_likely_line(fake: Tensor, real: Tensor, prior: float) -> tuple[Estimate, Estimate]:
    """Slope and offset of ln odds(real) = offset + slope l + prior, with errors from the Fisher information.

    It is the information of samples that fall on either side by chance. Here the sizes of both sides are given, which
    leaves the slope's variance as it is and takes 1/n + 1/m off the offset's (Prentice and Pyke 1979, Biometrika 66).
    """
    nothing = Estimate(math.nan, math.nan), Estimate(math.nan, math.nan)
    if fake.max() <= real.min() or real.max() <= fake.min():
        return nothing
    logit = torch.cat([fake, real])
    is_real = torch.cat([torch.zeros_like(fake), torch.ones_like(real)])
    centre, scale = logit.mean(), logit.std()
    design = torch.stack([(logit - centre) / scale, torch.ones_like(logit)], dim=1)
    fit = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-10).fit(design[:, :1], is_real)
    share = (design @ torch.tensor([*fit.coef_[0], *fit.intercept_])).sigmoid()
    covariance = torch.linalg.inv((design * (share * (1 - share))[:, None]).T @ design)
    line = torch.tensor([*fit.coef_[0], *(fit.intercept_ - prior)])
    to_offset = torch.stack([-centre / scale, torch.ones_like(centre)])
    variance = (to_offset @ covariance @ to_offset - 1 / len(fake) - 1 / len(real)).clamp(min=0)
    slope = Estimate(float(line[0] / scale), float(covariance[0, 0].sqrt() / scale))
    return slope, Estimate(float(to_offset @ line), float(variance.sqrt()))
