"""Does a teacher's deterministic sampler crowd its samples together, and is its error at high noise the cause?"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.random import fold_seed, generator_for
from fdistill.data import Batch, GenerativeDataModule
from fdistill.evaluation.comparison import Comparison
from fdistill.evaluation.evaluate import check_fits
from fdistill.evaluation.features import FeatureExtractor, default_extractor
from fdistill.evaluation.report.intervals import LEAST_FOR_INTERVALS, standard_errors, usual_splits
from fdistill.evaluation.report.rows import compare
from fdistill.evaluation.report.teacher_verdict import teacher_verdict
from fdistill.evaluation.samples import Samples
from fdistill.evaluation.see_saw import LinearDenoiser, SeeSawCurve, see_saw
from fdistill.evaluation.sources import ModelSource
from fdistill.models.denoiser import Denoiser
from fdistill.sampling import GDDIM, Heun
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.noise_levels import LogUniform
from fdistill.theory.paths import VarianceExploding
from fdistill.theory.preconditioning import X0Prediction

MEASURED = ("tid", "anchored_tid", "count_ratio", "recall", "precision", "vendi_ratio", "frechet_distance")
MOST = 1000  # samples of each row, where nobody asked for another number
NUM_BINS = 10


@dataclass
class TeacherDiagnosis:
    """The report, and what pictures show beside it.

    Attributes:
        report: plain values.
        curve: of the teacher, from low noise to high.
        best: of the exact denoiser; None where it is not known.
        samples: "real", "sde" and "ode" of the first draw, [n, ...]; sample i of both samplers has the same latent.
    """

    report: dict[str, Any]
    curve: SeeSawCurve
    best: SeeSawCurve | None
    samples: dict[str, Tensor]


def diagnose_teacher(
    model: GenerativeModel,
    data: GenerativeDataModule,
    n: int | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    eta: float = 1.0,
    repeats: int = 4,
    extractor: FeatureExtractor | None = None,
) -> TeacherDiagnosis:
    """Compare a teacher's ODE and SDE samples with real data, and its loss by noise level with the best linear one.

    Deterministic sampling turns errors at high noise into samples that crowd together, stochastic sampling forgets
    them (arXiv 2508.16154). Both samplers get the same latents, classes and number of evaluations, and no guidance,
    which narrows both. All rows are n samples against the same n held-out real ones: "real" is n training samples,
    "sde" is GDDIM(eta), "ode" the teacher's own sampler, or Heun where that is stochastic.

    Args:
        model: a teacher.
        data: real samples.
        n: of each row; the smaller of 1000 and the splits where not given.
        seed: of all draws and of the features.
        num_steps: of EDM's grid between the teacher's first and last level; the teacher's own grid where not given.
        eta: stochasticity of the SDE, > 0.
        repeats: draws that the numbers are means of, >= 1.
        extractor: prepared here; the default one where not given.

    Raises:
        ValueError: for a student, a teacher of latents or of other data, or an argument outside its range.
    """
    most = min(len(data.held_out_samples), len(data.train_samples))
    n = min(most, MOST) if n is None else n
    _check(model, data, n, most, eta, repeats)
    sources = _sources(model, num_steps, eta)
    extractor = extractor or default_extractor(data.sample_shape, data.num_classes)
    train, held_out, read = data.train_samples, data.held_out_samples, Comparison(data, extractor, seed).read
    chosen = torch.randperm(len(held_out), generator=generator_for(seed))[:n]
    real = held_out.rows(chosen)
    reference = read("held-out samples", *real[:2])

    rows: dict[str, list[dict[str, float | None]]] = {name: [] for name in ("real", *sources)}
    first: dict[str, Samples] = {}
    shown: dict[str, Tensor] = {}
    for repeat in tqdm(range(repeats), desc="Diagnosis", unit="draw"):
        order = torch.randperm(len(train), generator=generator_for(seed, repeat))[:n]
        made = {"real": train.rows(order)}
        drawn = {"real": read("training samples", *made["real"][:2])}
        for name, source in sources.items():
            made[name] = Batch(source.draw(n, fold_seed(seed, repeat) % 2**32, real.classes), real.classes)
            drawn[name] = read(f"{name} samples", *made[name][:2])
        for name, samples in drawn.items():
            rows[name].append(compare(samples, reference))
        first, shown = first or drawn, shown or {name: batch.x for name, batch in made.items()}
    splits = usual_splits(reference.features)
    report: dict[str, Any] = {
        name: _summary(found, standard_errors(first[name], reference, 0, splits, seed)) for name, found in rows.items()
    }
    curve, best = _curves(model, data, real.x, real.classes, seed)
    report |= {"see_saw": _columns(curve, best), "data_std": data.data_std()}
    report |= _facts(sources, n, repeats, seed, eta, extractor, data)
    report["collapse"], report["verdict"] = teacher_verdict(report)
    return TeacherDiagnosis(report, curve, best, shown)


def finer_grid(sigmas: Tensor, num_steps: int) -> Tensor:
    """A grid of num_steps steps with the ends of another: its levels > 0 at equal shares, geometric between them.

    Args:
        sigmas: strictly falling to >= 0, float64 [N + 1].
        num_steps: N or more, of the grid returned [num_steps + 1].
    """
    logs = sigmas[sigmas > 0].log()
    reaches_0 = len(logs) < len(sigmas)
    place = torch.linspace(0, len(logs) - 1, num_steps if reaches_0 else num_steps + 1, dtype=torch.float64)
    above = place.floor().long()
    below = (above + 1).clamp(max=len(logs) - 1)
    levels = torch.lerp(logs[above], logs[below], place - above).exp()
    return torch.cat([levels, levels.new_zeros(1)]) if reaches_0 else levels


def _check(model: GenerativeModel, data: GenerativeDataModule, n: int, most: int, eta: float, repeats: int) -> None:
    if model.kind != "teacher":
        raise ValueError(
            f"a diagnosis compares a teacher's deterministic and stochastic samples: got a {model.kind}; "
            "give its teacher's checkpoint"
        )
    if model.decoder is not None:
        raise ValueError(
            "a diagnosis needs the teacher's denoising loss on real samples: expected a teacher of what the data "
            "holds, got one of latents; give a teacher without a decoder"
        )
    check_fits("teacher", ModelSource(model), data)
    if not LEAST_FOR_INTERVALS <= n <= most:
        raise ValueError(
            f"n samples are compared with n held-out real ones, and so are n training ones: "
            f"expected {LEAST_FOR_INTERVALS} <= n <= {most}, got {n}"
        )
    if not eta > 0:
        raise ValueError(f"eta is the stochasticity of the sampler beside the ODE and positive: got {eta}")
    if repeats < 1:
        raise ValueError(f"repeats is at least 1: got {repeats}")


def _sources(model: GenerativeModel, num_steps: int | None, eta: float) -> dict[str, ModelSource]:
    """Both samplers of one denoiser, at equal evaluations."""
    grid = model.sigmas if num_steps is None else model.edm_grid(num_steps)
    sampler = Heun() if model.sampler is None or model.sampler.is_stochastic else model.sampler
    as_fine = finer_grid(grid, sampler.evaluations(grid))
    return {
        "sde": ModelSource(GenerativeModel(model.denoiser, "teacher", as_fine, sampler=GDDIM(eta))),
        "ode": ModelSource(GenerativeModel(model.denoiser, "teacher", grid, sampler=sampler)),
    }


def _summary(
    rows: list[dict[str, float | None]], errors: dict[str, float | None]
) -> dict[str, dict[str, float | list[float] | None]]:
    """Of each number the mean over the draws, their range, and the standard deviation of one draw from half samples."""
    found: dict[str, dict[str, float | list[float] | None]] = {}
    for name in MEASURED:
        values, error = [value for row in rows if (value := row[name]) is not None], errors[name]
        if len(values) == len(rows):
            found[name] = {
                "mean": statistics.fmean(values),
                "range": [min(values), max(values)],
                "error": error if error is not None and math.isfinite(error) else None,
            }
    return found


def _curves(
    model: GenerativeModel, data: GenerativeDataModule, x_0: Tensor, labels: Tensor, seed: int
) -> tuple[SeeSawCurve, SeeSawCurve | None]:
    """The teacher's, and the exact denoiser's where the data knows it and the teacher is told no class."""
    device, classes = model.device, model.num_classes > 0
    generator = generator_for(seed, 2, device=device)
    linear = LinearDenoiser.fit(
        data.train_samples, generator, data.train_samples.labels if classes else None, model.num_classes
    )
    network = None if classes else data.exact_network()
    exact = None if network is None else Denoiser(network, X0Prediction(VarianceExploding())).to(device)
    positive = model.sigmas[model.sigmas > 0]
    levels = LogUniform(float(positive.min()), float(positive.max()))

    def curve(denoiser: Denoiser) -> SeeSawCurve:
        noise = generator_for(seed, 1, device=device)
        return see_saw(denoiser, linear, x_0.to(device), labels.to(device), levels, noise, NUM_BINS, exact)

    return curve(model.denoiser), None if exact is None else curve(exact)


def _columns(curve: SeeSawCurve, best: SeeSawCurve | None) -> dict[str, list[float]]:
    columns = {name: values.tolist() for name, values in curve._asdict().items() if values is not None}
    return columns if best is None else columns | {"exact_excess": best.excess.tolist()}


def _facts(
    sources: dict[str, ModelSource],
    n: int,
    repeats: int,
    seed: int,
    eta: float,
    extractor: FeatureExtractor,
    data: GenerativeDataModule,
) -> dict[str, Any]:
    return {
        "n": n,
        "repeats": repeats,
        "seed": seed,
        "eta": eta,
        "evaluations": {name: source.evaluations for name, source in sources.items()},
        "samplers": {name: type(source.model.sampler).__name__ for name, source in sources.items()},
        "features": extractor.name,
        "data": data.spec(),
        "teacher_facts": sources["ode"].facts,
    }
