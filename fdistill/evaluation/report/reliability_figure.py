"""Is the log ratio right? Predicted against observed, one panel a noise level, and where the logits lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from fdistill.evaluation.ratio_calibration import NoiseGroup, Reliability
from fdistill.evaluation.report.figure_file import BLUE, INK, PALE_BLUE, RED, new_figure, save_figure, styled

PANEL = 3.1  # inches of width
SURE = 2  # standard errors of an error bar
SHOWN = (0.2, 99.8)  # percentiles of the logits between which the axis reaches
BARS = 40


@styled
def reliability_figure(groups: Sequence[NoiseGroup], title: str, path: str | Path) -> Path:
    """Draw observed over predicted log ratio, and histograms of the logits, of each group; return the PNG's path.

    Args:
        groups: at least one, from low noise to high.
        title: above the picture.

    Raises:
        ValueError: without a group.
    """
    if not groups:
        raise ValueError("a reliability figure needs at least one group of noise levels: got none")
    healthy = (
        "On the dashed line all is well. Flatter than it: logits are too large;\n"
        "steeper: too small; beside it: shifted. Bars: two standard errors."
    )
    figure = new_figure(max(PANEL * len(groups) + 0.5, 4.6), 5.6, title, healthy)
    panels = figure.subplots(2, len(groups), sharex="col", height_ratios=(3, 1), squeeze=False)
    for group, upper, lower in zip(groups, *panels, strict=True):
        left, right = _range(group)
        upper.set_title(f"sigma {group.lowest:.2g} to {group.highest:.2g}", fontsize=10)
        _diagram(upper, group.reliability, left, right)
        _histogram(lower, group, left, right)
        lower.set_xlabel("predicted log ratio ln p/q (logit)")
    panels[0][0].set_ylabel("observed log ratio")
    panels[1][0].set_ylabel("density of samples")
    panels[1][0].legend()
    return save_figure(figure, path)


def _diagram(axes: Axes, found: Reliability, left: float, right: float) -> None:
    ends = np.array([left, right])
    axes.plot(ends, ends, "--", color=INK, lw=1)
    axes.plot(ends, found.offset.value + found.slope.value * ends, color=PALE_BLUE, lw=1.4)
    predicted, observed, error = (values.numpy() for values in (found.predicted, found.observed, found.standard_error))
    axes.errorbar(predicted, observed, SURE * error, fmt="o", ms=4, color=BLUE, capsize=2.5, lw=1.1)
    seen = np.concatenate([ends, observed - SURE * error, observed + SURE * error])
    margin = 0.04 * (seen.max() - seen.min())
    axes.set_ylim(seen.min() - margin, seen.max() + margin)
    note = (
        f"slope {found.slope.value:.2f} ± {found.slope.standard_error:.2f}\n"
        f"offset {found.offset.value:.2f} ± {found.offset.standard_error:.2f}\n"
        f"calibration error {100 * found.calibration_error:.1f}% (noise {100 * found.calibration_floor:.1f}%)\n"
        f"mean ratio {found.mean_ratio.value:.3g}"
    )
    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.4)


def _histogram(axes: Axes, group: NoiseGroup, left: float, right: float) -> None:
    edges = np.linspace(left, right, BARS + 1).tolist()
    for logit, colour, name in ((group.fake_logit, RED, "generated"), (group.real_logit, BLUE, "real")):
        inside = np.clip(_numbers(logit), left, right)
        axes.hist(inside, edges, density=True, histtype="step", color=colour, lw=1.2, label=name)
    axes.set_xlim(left, right)


def _range(group: NoiseGroup) -> tuple[float, float]:
    """Of the axis of logits: without the outermost of either side, but with every bin's prediction."""
    ends = [np.percentile(_numbers(side), SHOWN) for side in (group.fake_logit, group.real_logit)]
    seen = np.concatenate([*ends, group.reliability.predicted.numpy()])
    margin = 0.04 * (seen.max() - seen.min()) or 1.0
    return seen.min() - margin, seen.max() + margin


def _numbers(logit: Tensor) -> np.ndarray:
    return logit.detach().double().cpu().numpy()
