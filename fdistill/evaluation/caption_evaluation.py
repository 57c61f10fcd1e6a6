"""A one-step student of captions beside its teacher, and beside that teacher in one step, for shown and new captions.

The teacher's first step alone is a blurred mean, and the judge reads each digit and colour of it: accuracy without the
spread within a caption says nothing.
"""

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.random import fold_seed
from fdistill.data import CaptionedDigits
from fdistill.data.captioned_digits import captions
from fdistill.evaluation.caption_rows import (
    MOST_CAPTIONS,
    MOST_SEEDS,
    CaptionMetrics,
    CaptionSet,
    Row,
    caption_sets,
)
from fdistill.evaluation.features import CaptionFeatures
from fdistill.evaluation.sources import ModelSource, Source
from fdistill.io.stock_pipeline import PIPELINE, prompt_condition
from fdistill.models.condition import Condition
from fdistill.models.guidance import Guidance
from fdistill.sampling.first_step import learned_guidance
from fdistill.sampling.generator import GenerativeModel

SCALES = (1.0, 2.0, 4.0)
"""Of the teacher's guidance."""
USUAL_SEEDS = 16
SHOWN_CAPTIONS, SHOWN_SEEDS = 5, 8
"""In the picture of a set."""


@dataclasses.dataclass
class CaptionEvaluation:
    """The report in plain values, and by set and row the pictures of a few captions [n, 3, 8, 8]."""

    report: dict[str, Any]
    pictures: dict[str, dict[str, Tensor]]


def takes_captions(model: GenerativeModel, data: object) -> bool:
    """Whether a model is one of prompts, and the data one of captions that can be read from pictures."""
    return PIPELINE in model.facts and isinstance(data, CaptionedDigits)


def caption_teacher(source: Source | None) -> GenerativeModel | None:
    """The model of a teacher's source; raises ValueError for finished samples."""
    if source is not None and not isinstance(source, ModelSource):
        raise ValueError("captions are compared with a teacher that makes pictures of them: got finished samples")
    return None if source is None else source.model


def evaluate_captions(
    student: GenerativeModel,
    teacher: GenerativeModel | None,
    data: CaptionedDigits,
    n: int | None = None,
    seed: int = 0,
) -> CaptionEvaluation:
    """Pictures of 30 shown and 30 new captions, with as many seeds of each, beside held-out images of these captions.

    Args:
        student: of one or several steps.
        teacher: what it was distilled from, where known; measured at guidance 1, 2 and 4 and at the student's own.
        data: with a judge.
        n: pictures of each row, a multiple of 30 from 60 to 720; 480 where None.
        seed: of the noise, of the choice of real images, and of the judge.

    Raises:
        ValueError: for another n, or a model that does not make these pictures.
    """
    started, seeds = time.perf_counter(), USUAL_SEEDS if n is None else n // MOST_CAPTIONS
    if n is not None and (n % MOST_CAPTIONS or not 2 <= seeds <= MOST_SEEDS):
        most = MOST_CAPTIONS * MOST_SEEDS
        raise ValueError(f"n pictures are as many of each of {MOST_CAPTIONS} captions, at most {most}: got {n}")
    given = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    for name, model in given.items():
        if not takes_captions(model, data) or model.image_shape != tuple(data.sample_shape):
            raise ValueError(f"captions are judged in pictures {data.sample_shape} of prompts: the {name} makes others")
    judge = CaptionFeatures(data.split_seed).keep_learned()
    metrics, sets = CaptionMetrics(data, judge, seed), caption_sets(data, seeds, seed)
    models, encoded = _models(student, teacher), prompt_condition(student, captions(), data.num_classes)
    rows: dict[str, dict[str, Row]] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for key, of in sets.items():
        drawn = {"real": of.floor}
        for name, model in tqdm(models.items(), desc=f"{key} captions", unit="row"):
            drawn[name] = _draw(judge, model, encoded, of, fold_seed(seed, len(rows)) % 2**32, name != "student")
        rows[key] = {name: metrics.row(x, of) for name, x in drawn.items()}
        pictures[key] = {name: _first(x, seeds) for name, x in drawn.items()}
    facts = {f"{name}_facts": model.facts for name, model in given.items()}
    report = _report(rows, models, learned_scale(student)) | {
        **facts,
        "data": data.spec(),
        "n": MOST_CAPTIONS * seeds,
        "captions_of_a_set": MOST_CAPTIONS,
        "seeds_of_a_caption": seeds,
        "seed": seed,
        "features": judge.name,
        "seconds": {"evaluation": round(time.perf_counter() - started, 1)},
    }
    return CaptionEvaluation(report, pictures)


def teacher_row(scale: float) -> str:
    """The name of the teacher's row at a scale of guidance."""
    return f"teacher, guidance {scale:g}"


def one_step_row(scale: float) -> str:
    """The name of the row of its first step."""
    return f"teacher in one step, guidance {scale:g}"


def learned_scale(student: GenerativeModel) -> float:
    """The scale at which a student's teacher was guided."""
    return float(student.facts.get("guidance", 1.0))


def _models(student: GenerativeModel, teacher: GenerativeModel | None) -> dict[str, GenerativeModel]:
    found = {"student": student}
    if teacher is not None:
        first: dict[str, Any] = {"kind": "student", "sampler": None, "sigmas": teacher.sigmas[:1]}
        own = Guidance.of(teacher.guidance)
        for scale in sorted({*SCALES, learned_scale(student)}):
            guidance = Guidance.limited(scale, None, None, own.rescale, own.norm)
            if scale == learned_scale(student):
                guidance = learned_guidance(student, teacher)
            found[teacher_row(scale)] = dataclasses.replace(teacher, guidance=guidance)
            found[one_step_row(scale)] = dataclasses.replace(teacher, guidance=guidance, **first)
    return found


def _draw(
    judge: CaptionFeatures, model: GenerativeModel, encoded: Condition, of: CaptionSet, seed: int, keep: bool
) -> Tensor:
    """Pictures of every seed of every caption; those of a teacher are kept where the judge is."""

    def made() -> dict[str, Tensor]:
        condition = encoded.rows(of.wanted)
        return {"pictures": model.decode(model.sample(model.noise(len(of.wanted), seed), condition))}

    if not keep:
        return made()["pictures"]
    parts = [model.denoiser, Guidance.of(model.guidance), model.sampler, model.sigmas, model.start, model.decoder]
    return judge.kept("teacher's pictures", [parts, dict(encoded), of.wanted, seed], made)["pictures"]


def _first(pictures: Tensor, seeds: int) -> Tensor:
    """Some seeds of some captions, evenly over all."""
    by_caption = pictures.unflatten(0, (-1, seeds))
    chosen = torch.linspace(0, len(by_caption) - 1, SHOWN_CAPTIONS).round().long()
    return by_caption[chosen, :SHOWN_SEEDS].flatten(0, 1)


def _report(rows: dict[str, dict[str, Row]], models: dict[str, GenerativeModel], scale: float) -> dict[str, Any]:
    """All rows by set; those of shown captions again under the names that every report has; what is beside what."""
    own, shown = teacher_row(scale), rows["shown"]
    return {
        "captions": rows,
        "student_beside_teacher": {key: _beside(of["student"], of[own]) for key, of in rows.items() if own in models},
        "floor": shown["real"],
        **({"teacher": shown[own]} if own in models else {}),
        "student": shown["student"],
        "student_guidance": scale,
        "student_evaluations": models["student"].evaluations,
        "teacher_evaluations": models[own].evaluations if own in models else None,
    }


def _beside(student: Row, teacher: Row) -> dict[str, float | None]:
    """How much less accurate the student is, and its share of the teacher's variety; None where that has none."""
    shares = {
        f"{name}_ratio": student[name] / teacher[name] if teacher[name] > 0 else None
        for name in ("spread", "recall", "vendi_by_caption")
    }
    return {"accuracy_less": teacher["accuracy"] - student["accuracy"], **shares}
