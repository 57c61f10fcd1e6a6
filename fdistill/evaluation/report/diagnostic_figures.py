"""Pictures for finding out why a run fails: the teacher's excess loss and the density ratio, by noise level."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from fdistill.evaluation.report.figure_file import BLUE, INK, PALE_BLUE, RED, new_figure, save_figure, styled
from fdistill.evaluation.see_saw import SeeSawCurve

SURE = 2  # standard errors above 0, from which an excess is drawn as one
LOG_FROM = 30  # largest over smallest drawn weight, above which their axis becomes logarithmic
SHOWN = (1, 99)  # percentiles between which a distribution is drawn
NEVER_BELOW = 1e-30  # of a weight on a logarithmic axis


@styled
def see_saw_figure(curve: SeeSawCurve, title: str, path: str | Path, best: SeeSawCurve | None = None) -> Path:
    """Draw a denoiser's excess loss with error bars over sigma into a PNG at `path`; return the path.

    Args:
        curve: of the denoiser; the best linear denoiser is the line at 0.
        title: above the picture.
        best: of the exact denoiser, drawn as a second line where it is known.
    """
    healthy = "At or below 0 all is well. Red is above: at high noise, deterministic samples then crowd together."
    figure = new_figure(7.2, 4.2, title, healthy)
    draw_see_saw(figure.subplots(), curve, best)
    return save_figure(figure, path)


def draw_see_saw(axes: Axes, curve: SeeSawCurve, best: SeeSawCurve | None = None) -> None:
    """Draw what `see_saw_figure` shows into axes that are there."""
    sigma, excess, error = (value.numpy() for value in curve[:3])
    axes.axhline(0, color=INK, lw=1)
    axes.plot(sigma, excess, color=PALE_BLUE, lw=1.4, zorder=1)
    if best is not None:
        axes.plot(best.sigma.numpy(), best.excess.numpy(), "--", color=INK, lw=1, label="exact denoiser")
        axes.legend()
    too_high = excess > SURE * error
    for chosen, colour in ((~too_high, BLUE), (too_high, RED)):
        axes.errorbar(
            sigma[chosen], excess[chosen], SURE * error[chosen], fmt="o", ms=5, color=colour, capsize=3, lw=1.2
        )
    axes.set_xscale("log")
    largest = np.nanmax(excess, initial=0)
    if largest > 2:
        axes.set_yscale("symlog", linthresh=1, linscale=2)
        axes.set_ylim(-1.05, 2 * largest)  # no excess is below -1
    axes.set(xlabel="noise level sigma", ylabel="loss / loss of the best linear denoiser - 1")


@styled
def ratio_figure(
    log_ratios: Sequence[Tensor],
    weights: Sequence[Tensor],
    sigmas: Sequence[float],
    ess: Sequence[float],
    title: str,
    path: str | Path,
) -> Path:
    """Draw the distributions of log ratio and weight h(r), one violin a noise bin, into a PNG; return its path.

    Args:
        log_ratios: those of the samples in each bin, [K][n_k]; empty bins stay empty.
        weights: their weights >= 0.
        sigmas: median noise level of each bin, [K] rising.
        ess: effective share of the samples of each bin, in (0, 1]; NaN where it is empty.
        title: above the picture.
    """
    healthy = (
        "Healthy: the log ratio is centred near 0 at every noise level, wide at low noise and narrow at high noise; no "
        "bin\nhas weights far above the others. Bar: middle half; point: median; violin: 1st to 99th percentile."
    )
    figure = new_figure(7.2, 6.4, title, healthy)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.axhline(0, color=INK, lw=1)
    _violins(upper, [_drawn(values) for values in log_ratios])
    upper.set_ylabel("log ratio ln p/q")
    drawn = [_drawn(values) for values in weights]
    inside = np.concatenate([_middle(values) for values in drawn if len(values)] or [np.ones(1)])
    if inside.max() > LOG_FROM * max(inside.min(), NEVER_BELOW):
        drawn = [np.log10(np.maximum(values, NEVER_BELOW)) for values in drawn]
        lower.yaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
    _violins(lower, drawn)
    names = [f"{sigma:.2g}\n{share:.2f}".replace("nan", "empty") for sigma, share in zip(sigmas, ess, strict=True)]
    lower.set_xticks(range(len(sigmas)), names)
    lower.set(
        xlim=(-0.7, len(sigmas) - 0.3),
        ylabel="weight h(r)",
        xlabel="median noise level of the bin; effective share of its samples",
    )
    return save_figure(figure, path)


def _drawn(values: Tensor) -> np.ndarray:
    found = values.detach().double().cpu().numpy()
    return found[np.isfinite(found)]


def _middle(values: np.ndarray) -> np.ndarray:
    """Without the outermost percentiles, so that single samples do not set the scale."""
    low, high = np.percentile(values, SHOWN[0], method="lower"), np.percentile(values, SHOWN[1], method="higher")
    return values[(values >= low) & (values <= high)]


def _violins(axes: Axes, groups: Sequence[np.ndarray]) -> None:
    places = [i for i, values in enumerate(groups) if len(values)]
    for place in places:
        values = _middle(groups[place])
        if np.ptp(values) > 0:
            bodies: Any = axes.violinplot([values], [place], widths=0.85, showextrema=False)["bodies"]  # a list
            (body,) = bodies
            body.set(facecolor=PALE_BLUE, edgecolor=BLUE, alpha=0.7, linewidth=0.8)
        first, median, third = np.percentile(groups[place], (25, 50, 75))
        axes.vlines(place, first, third, color=BLUE, lw=4)
        axes.plot(place, median, "o", ms=4, mfc="white", mec=INK, zorder=3)
