"""Is the log ratio of a discriminator right? Trained on two mixtures whose exact log ratio is known.

    python tools/calibrate_ratio.py --out runs/calibrate_ratio

Teacher: eight modes on a ring. Student: the same ring with wider modes, two of which it nearly forgot. The small
discriminator of low-dimensional data learns from endless real samples and from a few hundred, with R1 (exact, and its
approximation) at several weights and without, for each seed. Fresh samples judge it: reliability, which any run can
measure, and errors against the exact ratio; of the logit, and after stage 1. Writes results.json, a table in Markdown,
and a picture of each case of the first seed into --out.
"""

import argparse
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdistill.core.atomic_files import write_json
from fdistill.core.random import generator_for
from fdistill.evaluation.ratio_calibration import (
    NoisedLogits,
    noised_logits,
    reliability,
    reliability_by_noise,
)
from fdistill.evaluation.report.reliability_figure import reliability_figure
from fdistill.models.networks import GaussianMixture
from fdistill.objectives import discriminator_loss
from fdistill.objectives.log_ratio import ExactRatio, RatioEstimator, SampleDiscriminator, gradient_penalty
from fdistill.theory.divergences import ForwardKL, JensenShannon
from fdistill.theory.noise_levels import LogUniform

ANGLES = [2 * math.pi * i / 8 for i in range(8)]
RING = [[math.cos(angle), math.sin(angle)] for angle in ANGLES]
TEACHER = GaussianMixture(RING, [0.15] * 8)
STUDENT = GaussianMixture(RING, [0.22] * 8, [1, 1, 1, 0.05, 1, 1, 1, 0.05])
LEVELS = LogUniform(0.05, 3.0)
SIGMA_DATA = 0.72
BATCH, LR = 256, 1e-3
UNCLIPPED = (0.0, math.inf)
STAGES = ("logit", "stage 1", "stage 1, no clip")


class RatioErrors(NamedTuple):
    """An estimated log ratio against the exact one at student samples: an entry a noise bin, float64, NaN if empty."""

    bias: Tensor  # mean of estimate - exact
    rms: Tensor  # root mean square of estimate - exact
    correlation: Tensor
    slope: Tensor  # of the exact log ratio over the estimate, least squares: 1 if right, below 1 if estimates are large
    mean_ratio: Tensor  # E_q of e^estimate: 1 if right


def ratio_errors(bins: Tensor, estimate: Tensor, exact: Tensor, num_bins: int) -> RatioErrors:
    """Errors of a log ratio where the exact one is known (`ExactRatio`), by noise bin.

    Args:
        bins: index of each student sample's noise bin, int64 [n] in [0, num_bins); zeros for all of them together.
        estimate: log ratio [n].
        exact: log ratio [n].
        num_bins: of the result.
    """
    rows = []
    for i in range(num_bins):
        guess, truth = (values[bins == i].detach().double().cpu() for values in (estimate, exact))
        error, spread, true_spread = guess - truth, guess - guess.mean(), truth - truth.mean()
        common = (spread * true_spread).sum()
        rows.append(
            [
                error.mean(),
                error.square().mean().sqrt(),
                common / (spread.norm() * true_spread.norm()),
                common / spread.square().sum(),
                guess.exp().mean(),
            ]
        )
    return RatioErrors(*torch.tensor(rows, dtype=torch.float64).T)


def misplaced_weight(bins: Tensor, weight: Tensor, exact_weight: Tensor, num_bins: int) -> Tensor:
    """Share of all weight that lies on the wrong samples, by noise bin, [num_bins] float64; it sums to at most 1.

    Both weights are divided by their mean over all samples first, as the student's loss does; the sum of the result is
    their total variation distance.

    Args:
        bins: index of each student sample's noise bin, int64 [n].
        weight: h(r) >= 0 of the estimate, [n].
        exact_weight: h(r) of the exact ratio, [n].
        num_bins: of the result.
    """
    shares, exact = (values.double() / values.double().sum() for values in (weight, exact_weight))
    return shares.new_zeros(num_bins).index_add_(0, bins, (shares - exact).abs() / 2)


class Case(NamedTuple):
    """How a discriminator is trained."""

    name: str
    real_samples: int | None  # None for endless ones
    weight: float  # of half of R1
    step: float  # of its approximation; 0 is exact


CASES = [
    Case("endless", None, 0.0, 0.0),
    Case("endless, R1 .02", None, 0.02, 0.0),
    Case("few", 300, 0.0, 0.0),
    Case("few, R1 .02", 300, 0.02, 0.0),
    Case("few, R1 .02, step .1", 300, 0.02, 0.1),
    Case("few, R1 .2", 300, 0.2, 0.0),
]


def train(case: Case, seed: int, turns: int) -> tuple[dict[str, RatioEstimator], float]:
    """Estimators that share a discriminator, with and without clipping; milliseconds of processor time a turn."""
    torch.manual_seed(seed)
    generator = generator_for(seed, 1)
    discriminator = SampleDiscriminator((2,))
    estimators = {
        "stage 1": RatioEstimator(discriminator, LEVELS, SIGMA_DATA),
        "stage 1, no clip": RatioEstimator(discriminator, LEVELS, SIGMA_DATA, clip=UNCLIPPED),
    }
    optimiser = torch.optim.Adam(discriminator.parameters(), LR)
    kept = None if case.real_samples is None else TEACHER.sample(case.real_samples, generator)[0]
    started = time.process_time()
    for _ in range(turns):
        if kept is None:
            real = TEACHER.sample(BATCH, generator)[0]
        else:
            real = kept[torch.randint(len(kept), (BATCH,), generator=generator)]
        fake, sigma = STUDENT.sample(BATCH, generator)[0], LEVELS.sample(BATCH, generator)
        fake, real = (x + sigma[:, None] * torch.randn(x.shape, generator=generator) for x in (fake, real))
        fake_logit = discriminator(fake, sigma, None, SIGMA_DATA)
        loss = discriminator_loss(fake_logit, discriminator(real, sigma, None, SIGMA_DATA))
        if case.weight:
            loss = loss + case.weight / 2 * penalty(discriminator, real, sigma, case.step, generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for estimator in estimators.values():
            estimator.log_ratio(fake_logit, sigma)
    return estimators, 1000 * (time.process_time() - started) / turns


def penalty(
    discriminator: SampleDiscriminator, x_t: Tensor, sigma: Tensor, step: float, generator: torch.Generator
) -> Tensor:
    def logit_of(x: Tensor) -> Tensor:
        return discriminator(x, sigma, None, SIGMA_DATA)

    return gradient_penalty(logit_of, x_t, sigma, SIGMA_DATA, generator, step)


def judge(fake: NoisedLogits, real: NoisedLogits, exact: Tensor, bins: Tensor) -> dict[str, Any]:
    """Reliability, and errors against the exact ratio, all noise levels together and by noise bin."""
    together = torch.zeros_like(bins)
    errors, by_bin = ratio_errors(together, fake.logit, exact, 1), ratio_errors(bins, fake.logit, exact, 10)
    found: dict[str, Any] = reliability(fake.logit, real.logit).numbers()
    found |= {f"exact_{name}": float(value) for name, value in errors._asdict().items()}
    found["by_bin"] = {name: values.tolist() for name, values in by_bin._asdict().items()}
    for divergence in (JensenShannon(), ForwardKL()):
        weights = divergence.weight(fake.logit.double()), divergence.weight(exact.double())
        misplaced = misplaced_weight(bins, *weights, 10)
        name = f"misplaced_{type(divergence).__name__}"
        found[name], found["by_bin"][name] = float(misplaced.sum()), misplaced.tolist()
    return found


def study(
    name: str, seed: int, n: int, estimators: dict[str, RatioEstimator], picture: Path | None
) -> list[dict[str, Any]]:
    """Rows of one discriminator: its logit, and both kinds of stage 1."""
    generator = generator_for(seed, 2)
    logit_of = partial(estimators["stage 1"].logit, None)
    fake, real = (
        noised_logits(logit_of, mixture.sample(n, generator)[0], None, LEVELS, generator)
        for mixture in (STUDENT, TEACHER)
    )
    exact = ExactRatio(TEACHER, STUDENT)(fake.x_t.double(), fake.sigma.double())
    bins = estimators["stage 1"].bin_of(fake.sigma)
    sides = {"logit": (fake, real)}
    for stage, estimator in estimators.items():
        sides[stage] = tuple(side._replace(logit=estimator.centred(side.logit, side.sigma)) for side in (fake, real))
    if picture is not None:
        for stage, both in sides.items():
            path = picture / f"{name}-{stage}.png".replace(" ", "_").replace(",", "")
            reliability_figure(reliability_by_noise(*both, LEVELS), f"{name}: {stage}", path)
    return [{"case": name, "seed": seed, "stage": stage, **judge(*sides[stage], exact, bins)} for stage in STAGES]


def exact_estimators(seed: int, turns: int) -> dict[str, RatioEstimator]:
    """Stage 1 of the exact ratio, for what clipping and averaging alone do."""
    truth, generator = ExactRatio(TEACHER, STUDENT), generator_for(seed, 3)
    estimators = {
        "stage 1": RatioEstimator(truth, LEVELS, SIGMA_DATA),
        "stage 1, no clip": RatioEstimator(truth, LEVELS, SIGMA_DATA, clip=UNCLIPPED),
    }
    for _ in range(turns):
        x, sigma = STUDENT.sample(BATCH, generator)[0], LEVELS.sample(BATCH, generator)
        x = x + sigma[:, None] * torch.randn(x.shape, generator=generator)
        for estimator in estimators.values():
            estimator.log_ratio(estimator.logit(None, x, sigma, None), sigma)
    return estimators


COLUMNS = {
    "slope": "slope",
    "offset": "offset",
    "calibration error": "calibration_error",
    "E_q e^l": "mean_ratio",
    "rms error": "exact_rms",
    "correlation": "exact_correlation",
    "JS weight misplaced": "misplaced_JensenShannon",
    "forward KL weight misplaced": "misplaced_ForwardKL",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Median over the seeds, and the range where there are several."""
    lines = ["| case | of | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (2 + len(COLUMNS))]
    for case in dict.fromkeys(row["case"] for row in rows):
        for stage in STAGES:
            mine = [row for row in rows if row["case"] == case and row["stage"] == stage]
            cells = [cell([row[key] for row in mine]) for key in COLUMNS.values()]
            lines.append(f"| {case} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--n", type=int, default=20_000, help="fresh samples of each side that judge")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows, milliseconds = [], {}
    for seed in options.seeds:
        pictures = options.out if seed == options.seeds[0] else None
        rows += study("exact", seed, options.n, exact_estimators(seed, options.turns), pictures)
        for case in CASES:
            estimators, spent = train(case, seed, options.turns)
            milliseconds.setdefault(case.name, []).append(round(spent, 2))
            rows += study(case.name, seed, options.n, estimators, pictures)
            print(f"seed {seed}, {case.name}: {spent:.1f} ms a turn")
    facts = {"turns": options.turns, "n": options.n, "seeds": options.seeds, "milliseconds_a_turn": milliseconds}
    write_json(options.out / "results.json", {**facts, "rows": rows})
    text = table(rows)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
