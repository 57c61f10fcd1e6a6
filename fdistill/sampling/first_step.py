"""A few-step student whose first step the teacher makes (arXiv 2503.10637), which needs no training."""

import dataclasses

from fdistill.models.condition import declared, fits
from fdistill.models.guidance import Guidance
from fdistill.sampling.generator import GenerativeModel


def with_first_step_of(student: GenerativeModel, teacher: GenerativeModel) -> GenerativeModel:
    """The student with its teacher's D in place of its own at its first noise level.

    It is guided as the student learned that it is (scale, interval, rescaling), or as the teacher is itself.

    Raises:
        ValueError: for a student of one step, another kind of model, or a teacher of other samples or conditions.
    """
    if student.kind != "student" or len(student.sigmas) < 2:
        got = "a teacher" if student.kind == "teacher" else "one of one step"
        raise ValueError(f"a teacher makes the first step of a student of several: got {got}; leave first_step out")
    if teacher.kind != "teacher":
        raise ValueError("a first step is made by a teacher: first_step holds a student")
    one, other = student.denoiser, teacher.denoiser
    if one.sample_shape != other.sample_shape or not fits(other.takes, one.takes):
        raise ValueError(
            f"a first step is of the student's samples and conditions: expected {one.sample_shape} and "
            f"{declared(one.takes)}, got {other.sample_shape} and {declared(other.takes)}"
        )
    other.noise_range.check("the first noise level of a student", student.sigmas[:1].tolist())
    guidance = learned_guidance(student, teacher)
    Guidance.of(guidance).check_fits(other)
    return dataclasses.replace(student, first_step=(other, guidance))


def learned_guidance(student: GenerativeModel, teacher: GenerativeModel) -> float | Guidance:
    """How the teacher was guided while the student learned; its own guidance where that is not known or has a guide."""
    facts, own = student.facts, Guidance.of(teacher.guidance)
    if "guidance" not in facts or "guide" in facts:
        return teacher.guidance
    interval, rescale = facts.get("guidance_interval"), facts.get("guidance_rescale", own.rescale)
    return Guidance.limited(facts["guidance"], interval, None, rescale, own.norm)
