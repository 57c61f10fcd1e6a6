"""In words: do deterministic samples crowd together, is an error at high noise the cause, and what to try."""

import math
from collections.abc import Mapping
from typing import Any

SURE = 3.0  # standard errors of a difference, beyond which it is one
LEAST_EXCESS = 0.05  # of the loss over the best linear denoiser's, below which it is not worth a word
CROWDS = {"anchored_tid": 1, "tid": 1, "count_ratio": 1}
"""What tells of samples that crowd together, and whether it rises (1) or falls (-1) then."""
NARROWS = {"recall": -1, "vendi_ratio": -1}
"""The same of samples that leave parts of the data out."""
SIGNS = CROWDS | NARROWS

REMEDIES = (
    "sample with GDDIM(1.0) or PredictorCorrector (norms: expected in few dimensions), or train with EDM "
    "preconditioning, with skip: true of an eps-network, with TwoExperts, or with a longer average of the weights"
)


def teacher_verdict(report: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a teacher's report shows a collapse of deterministic sampling, and a paragraph that says so.

    It is one where a number of the ODE is worse than both the SDE's and real data's by more than three standard errors
    of the difference. The errors are those of single draws, by half samples; means of several draws, and rows that
    share a reference, scatter less. An SDE that is itself worse than real data is reported as a poor yardstick.

    Args:
        report: "real", "sde" and "ode", each {metric: {"mean", "error"}}; "see_saw", whose columns "sigma", "excess"
            and "standard_error" hold one number a noise bin; "data_std".
    """
    crowds, narrows = (
        [name for name, sign in signs.items() if _worst(report, name, sign)] for signs in (CROWDS, NARROWS)
    )
    narrow = {
        row: [name for name, sign in SIGNS.items() if _worse(report, name, sign, row, "real")] for row in ("ode", "sde")
    }
    shared = [name for name in narrow["ode"] if name in narrow["sde"]]
    farther = [name for name in ("frechet_distance",) if _worst(report, name, 1)]
    says = [text for names, text in ((crowds, "crowd together"), (narrows, "leave parts of the data out")) if names]
    if says:
        found = f"Deterministic samples {' and '.join(says)}: {_numbers(report, [*crowds, *narrows])}."
    elif farther:
        found = (
            "Deterministic samples do not crowd together, but they lie farther from the data than stochastic ones: "
            f"{_numbers(report, farther)}."
        )
    elif shared:
        found = (
            "No collapse of deterministic sampling: both samplers are worse than real data: "
            f"{_numbers(report, shared)}."
        )
    else:
        found = "No collapse found: deterministic samples crowd no more than stochastic ones, or than real data."
    if narrow["sde"] and not says:
        found += (
            f" The stochastic samples are no good yardstick here: see their {' and '.join(narrow['sde'])}. "
            "Few steps of first order narrow them; more --steps tell whether that is all."
        )
    return bool(says), f"{found} {_cause(report, amiss=bool(says or farther))}"


def _worst(report: Mapping[str, Any], metric: str, sign: int) -> bool:
    """Whether the ODE's number is worse than both the SDE's and real data's."""
    return all(_worse(report, metric, sign, "ode", other) for other in ("sde", "real"))


def _worse(report: Mapping[str, Any], metric: str, sign: int, row: str, other: str) -> bool:
    """Whether a row's number lies beyond chance above (sign 1) or below (-1) another's; not where one is missing."""
    mine, its = report[row].get(metric), report[other].get(metric)
    if not mine or not its or mine["error"] is None or its["error"] is None:
        return False
    return sign * (mine["mean"] - its["mean"]) > SURE * math.hypot(mine["error"], its["error"])


def _numbers(report: Mapping[str, Any], names: list[str]) -> str:
    return "; ".join(
        f"{name} {report['ode'][name]['mean']:.3g} (stochastic {report['sde'][name]['mean']:.3g}, "
        f"real {report['real'][name]['mean']:.3g})"
        for name in names
    )


def _cause(report: Mapping[str, Any], amiss: bool) -> str:
    """What the loss at noise levels above the data's deviation says, and what to try."""
    columns = zip(*(report["see_saw"][name] for name in ("sigma", "excess", "standard_error")), strict=True)
    high = [row for row in columns if row[0] > report["data_std"]]
    wrong = [row for row in high if row[1] > max(LEAST_EXCESS, SURE * row[2])]
    if not wrong:
        says = "At high noise its loss is not above the best linear denoiser's"
        return f"{says}: look for the cause in the sampler, with more --steps." if amiss else f"{says}."
    sigma, excess, _ = max(wrong, key=lambda row: row[1])
    says = (
        f"At high noise it is wrong: at sigma {sigma:.2g} its loss is {1 + excess:.3g} times the best linear denoiser's"
    )
    return f"{says}. Try: {REMEDIES}." if amiss else f"{says}, which its samples do not show."
