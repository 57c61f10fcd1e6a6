"""Where along the noise levels a teacher is poor, and where a student's density ratio is off."""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fdistill.data.batches import InMemorySplit
from fdistill.models.denoiser import Denoiser
from fdistill.theory.noise_levels import NoiseLevels

BATCH = 256  # samples a forward pass
MOST_ENTRIES = 4096  # of a covariance's side: its eigenvectors take 128 MiB
_ROUNDING = 1e-12  # variances below this share of the largest are none
_SMALLEST_SHARE = 1e-6  # keeps u away from 0 and 1, where a log-normal has no finite quantile


class LinearDenoiser:
    """The best linear denoiser of a mean mu and a covariance C: D(x) = mu + C (C + sigma^2)^-1 (x - mu), in float64.

    For data of these moments, Gaussian or not, its expected loss E|D(x_0 + sigma eps) - x_0|^2 is
    trace(C sigma^2 (C + sigma^2)^-1), and no linear denoiser has a smaller one (Wiener's filter). With the mean of each
    class and the covariance within classes it is the bar for a denoiser that is told the class: knowing the class alone
    wins so much at high noise that an error there would be hidden.
    """

    def __init__(self, mean: Tensor, axes: Tensor, variances: Tensor) -> None:
        """Args:
        mean: of the flattened samples, [1, d]; or of each class, [M, d].
        axes: orthonormal eigenvectors of C as columns, [d, k]; C is 0 in the directions left out.
        variances: their eigenvalues, [k], >= 0.
        """
        self.mean, self._axes, self._variances = mean.double(), axes.double(), variances.double()

    @classmethod
    def fit(
        cls,
        x_0: Tensor | InMemorySplit,
        generator: torch.Generator,
        labels: Tensor | None = None,
        num_classes: int = 0,
    ) -> "LinearDenoiser":
        """The one of the samples' own mean and covariance.

        Beyond 4096 entries a sample the covariance is that of at most 4096 samples. It is 0 in directions that no
        sample shows, so that with fewer samples than entries this is not quite the best on others, and easier to beat.

        Args:
            x_0: [n, *sample_shape]; a split, `data.train_samples`, is read a batch at a time.
            generator: of the choice of samples, on the device to fit on.
            labels: classes [n] in [0, num_classes), to be told the class; None for one mean of all.
            num_classes: a class without samples has the mean of all.

        Raises:
            ValueError: where a value is NaN or infinite, or all samples (of a class) are equal.
        """
        device = generator.device
        classes = torch.zeros(len(x_0), dtype=torch.int64) if labels is None else labels
        classes, rows = classes.to(device), torch.arange(len(x_0))
        mean = _class_means(x_0, classes, 1 if labels is None else num_classes)
        if mean.shape[1] > MOST_ENTRIES and len(x_0) > MOST_ENTRIES:
            chosen = torch.randperm(len(x_0), generator=generator, device=device)[:MOST_ENTRIES]
            classes, rows = classes[chosen], chosen.cpu()
        n, d = len(rows), mean.shape[1]
        blocks = zip(_blocks(x_0, rows, device), classes.split(BATCH), strict=True)
        centred = (block - mean[index] for block, index in blocks)
        if n > d:
            variances, axes = _eigen(cast(Tensor, sum(block.T @ block for block in centred)) / n)
        else:  # the same eigenvalues from products of samples, which are fewer
            rows = torch.cat(list(centred))
            variances, vectors = _eigen(rows @ rows.T / n)
            kept = variances > _ROUNDING * variances[-1]
            variances = variances[kept]
            axes = rows.T @ (vectors[:, kept] / (n * variances).sqrt())
        return cls(mean, axes, variances)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x) for x [B, *sample_shape], sigma [B] > 0 and, where it knows classes, labels [B]; float64.

        Raises:
            ValueError: where it knows classes and gets no labels.
        """
        if len(self.mean) > 1 and labels is None:
            raise ValueError(f"a linear denoiser of {len(self.mean)} classes needs one label per sample: got None")
        mean = self.mean if len(self.mean) == 1 else self.mean[labels]
        along = (x.flatten(1).double() - mean) @ self._axes
        return (mean + (along * self._kept(sigma)) @ self._axes.T).reshape(x.shape)

    def expected_loss(self, sigma: Tensor) -> Tensor:
        """E|D(x_0 + sigma eps) - x_0|^2, summed over the entries, for data of these moments; float64 [B]."""
        return (self._kept(sigma) * sigma.double()[:, None].square()).sum(1)

    def _kept(self, sigma: Tensor) -> Tensor:
        """Share of each eigenvector that is kept, [B, k]."""
        return self._variances / (self._variances + sigma.double()[:, None].square())


class SeeSawCurve(NamedTuple):
    """One entry a noise bin, from low noise to high, float64 on the CPU."""

    sigma: Tensor  # the middle of the bin: half of its probability lies below
    excess: Tensor  # denoising loss over that of the best linear denoiser, minus 1; in [-1, inf)
    standard_error: Tensor  # of the excess
    eps_error: Tensor | None  # root mean square error of the predicted eps, over that of the exact one; >= 0


@torch.no_grad()
def see_saw(
    denoiser: Denoiser,
    linear: LinearDenoiser,
    x_0: Tensor,
    labels: Tensor | None,
    noise_levels: NoiseLevels,
    generator: torch.Generator,
    num_bins: int = 10,
    exact: Denoiser | None = None,
) -> SeeSawCurve:
    """Loss E|D(x_0 + sigma eps, sigma) - x_0|^2 of a denoiser against that of the best linear one, per noise bin.

    At high noise the best denoiser is nearly linear, so that a positive excess there is an error of the network, which
    deterministic sampling turns into samples that crowd together. It is called see-saw because learning low noise well
    harms high noise (arXiv 2508.16154; the linear denoiser as yardstick is ours). Both denoisers see the same noise,
    and each sample counts by its loss over the expected linear loss at its sigma, so that no noise level of a bin
    outweighs the others. No guidance.

    Args:
        denoiser: in evaluation mode.
        linear: fitted on training data; it is told the class where the denoiser is.
        x_0: clean samples [n, *sample_shape], n >= 2, on the denoiser's device; all of them are noised in every bin.
        labels: their classes [n], for a conditional denoiser.
        noise_levels: cut into bins of equal probability; `LogUniform` gives bins of equal width in ln sigma.
        generator: of the noise, on the same device.
        num_bins: at least 1.
        exact: E[x_0 | x] where it is known.

    Raises:
        ValueError: for fewer than two samples or no bin.
    """
    if len(x_0) < 2 or num_bins < 1:
        raise ValueError(f"a see-saw needs at least 2 samples and 1 bin: got {len(x_0)} and {num_bins}; give more")
    labels = labels if denoiser.num_classes else None
    middles = noise_levels.quantile((torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins)
    bins = []
    for i in range(num_bins):
        u = torch.rand(len(x_0), dtype=x_0.dtype, device=x_0.device, generator=generator)
        sigma = noise_levels.quantile(((i + u) / num_bins).clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE))
        parts = [_losses(denoiser, linear, x_0, labels, sigma, rows, generator, exact) for rows in _rows(len(x_0))]
        bins.append(_summary(*torch.cat(parts, dim=1).cpu()))
    excess, standard_error, eps_error = (torch.stack(column) for column in zip(*bins, strict=True))
    return SeeSawCurve(middles, excess, standard_error, None if exact is None else eps_error)


class RatioByBin(NamedTuple):
    """One entry a noise bin, float64; NaN where a bin holds no sample."""

    log_mean: Tensor  # mean log ratio; 0 where the ratio is centred and the discriminator knows nothing
    weight_mean: Tensor  # mean of h(r)
    ess: Tensor  # effective share of the samples, (sum w)^2 / (n sum w^2), in (0, 1]


def ratio_by_bin(bins: Tensor, log_ratio: Tensor, weight: Tensor, num_bins: int) -> RatioByBin:
    """Log ratios and weights h(r) of student samples by noise bin.

    Args:
        bins: index of each sample's bin, int64 [n] in [0, num_bins).
        log_ratio: [n].
        weight: h(r) > 0 [n].
        num_bins: of the result.
    """
    log_ratio, weight = log_ratio.double(), weight.double()

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(num_bins).index_add_(0, bins, values)

    count, weights = total(torch.ones_like(weight)), total(weight)
    ess = weights.square() / (count * total(weight.square()))
    return RatioByBin(total(log_ratio) / count, weights / count, ess)


def _losses(
    denoiser: Denoiser,
    linear: LinearDenoiser,
    x_0: Tensor,
    labels: Tensor | None,
    sigma: Tensor,
    rows: slice,
    generator: torch.Generator,
    exact: Denoiser | None,
) -> Tensor:
    """[5, B]: both losses and the expected linear one; squared error and size of eps where the exact one is known."""
    clean, sigma = x_0[rows], sigma[rows]
    column = sigma.reshape(-1, *[1] * (clean.ndim - 1))
    x = clean + column * torch.randn(clean.shape, dtype=clean.dtype, device=clean.device, generator=generator)
    classes = None if labels is None else labels[rows]
    denoised = denoiser(x, sigma, classes)
    truth = denoised if exact is None else exact(x, sigma, None)
    rows_of = [
        _squared(denoised - clean),
        _squared(linear(x, sigma, classes) - clean),
        linear.expected_loss(sigma),
        _squared((denoised - truth) / column),
        _squared((x - truth) / column),
    ]
    return torch.stack(rows_of)


def _summary(loss: Tensor, linear: Tensor, expected: Tensor, eps: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """Excess, its standard error (delta method for a ratio of means), error of eps."""
    loss, linear = loss / expected, linear / expected
    ratio = loss.mean() / linear.mean()
    spread = (loss - ratio * linear).std() / linear.mean()
    return ratio - 1, spread / len(loss) ** 0.5, (eps.sum() / size.sum()).sqrt()


def _squared(error: Tensor) -> Tensor:
    return error.double().square().flatten(1).sum(1)


def _rows(n: int) -> Iterator[slice]:
    return (slice(first, first + BATCH) for first in range(0, n, BATCH))


def _blocks(x: Tensor | InMemorySplit, rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Those samples, flattened, in float64 on a device, a batch at a time."""
    for part in rows.split(BATCH):
        block = x[part.to(x.device)] if isinstance(x, Tensor) else x.rows(part).x
        yield block.to(device).flatten(1).double()


def _class_means(x: Tensor | InMemorySplit, classes: Tensor, num_classes: int) -> Tensor:
    """The mean of each class [num_classes, d] float64; the mean of all for a class without samples."""
    shape = x.shape[1:] if isinstance(x, Tensor) else x.sample_shape
    sums = torch.zeros(num_classes, math.prod(shape), dtype=torch.float64, device=classes.device)
    for block, index in zip(_blocks(x, torch.arange(len(x)), classes.device), classes.split(BATCH), strict=True):
        sums.index_add_(0, index, block)
    counts = classes.bincount(minlength=num_classes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(0) / len(x))


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues >= 0, rising, and eigenvectors of a matrix that is finite and not zero."""
    if not (covariance.isfinite().all() and covariance.trace() > 0):
        raise ValueError(
            "a linear denoiser needs data that varies: expected finite samples and a positive variance, got trace "
            f"{float(covariance.trace()):.3g}; check the training split"
        )
    variances, vectors = torch.linalg.eigh(covariance)
    return variances.clamp(min=0), vectors
