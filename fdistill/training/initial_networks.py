"""The networks that a distillation starts from: the teacher with its guidance, student and fake score, and facts."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fdistill.core.meta_device import drop_weights, without_weights
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.load import load_model
from fdistill.models.condition import declared, fits
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.preconditioning import EDM
from fdistill.training.at_rest import at_rest_as_now
from fdistill.training.roles import Roles


@contextmanager
def start_at_rank_0(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Where enabled, what the module builds inside has numbers on rank 0 alone; its strategy sends them around."""
    if not enabled or rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning sets it
        yield
        return
    with without_weights():
        yield
    drop_weights(module)


def teacher_model(source: Denoiser | GenerativeModel | str | Path) -> GenerativeModel:
    """The teacher to distil and how to sample it: what a checkpoint or exported folder holds, or the denoiser given.

    A denoiser alone has no sampler: it gets 18 Heun steps on EDM's grid from 80 down to .002, or between
    the ends of its path where these are nearer.

    Raises:
        CheckpointError: if the file cannot be used.
        ValueError: if it holds a student, which denoises at one noise level only.
    """
    if isinstance(source, Denoiser):
        low, high = source.noise_range
        return GenerativeModel.teacher(source, num_steps=18, sigma_min=max(low, 0.002), sigma_max=min(high, 80.0))
    model = source if isinstance(source, GenerativeModel) else load_model(source)
    if model.kind != "teacher":
        where = "the model given" if model is source else source
        raise ValueError(f"a teacher denoises at every noise level: {where} holds a {model.kind}")
    return model


def tunable_model(source: Denoiser | GenerativeModel | str) -> GenerativeModel:
    """What a reward can tune: a teacher, as of `teacher_model`, or a student."""
    model = load_model(source) if isinstance(source, str) else source
    return model if isinstance(model, GenerativeModel) and model.kind == "student" else teacher_model(model)


def teacher_guidance(
    scale: float,
    interval: Sequence[float] | None,
    guide: Denoiser | str | Path | None,
    rescale: float | None,
    teacher: GenerativeModel,
    dtype: torch.dtype,
) -> float | Guidance:
    """What guides the teacher; its guide is a frozen copy of a denoiser, or that of a teacher's checkpoint, in dtype.

    It is rescaled as the teacher's own guidance is, unless another share is given.

    Raises:
        CheckpointError: if the guide's file cannot be used.
        ValueError: for an interval, a guide or a share that does not fit, or that a scale of 1 would leave without
            effect.
    """
    own = Guidance.of(teacher.guidance)
    if rescale is not None and scale == 1:
        raise ValueError(f"guidance_rescale acts at a guidance scale other than 1: give guidance too, got {rescale}")
    worse = None if guide is None else copy.deepcopy(teacher_model(guide).denoiser).requires_grad_(False).eval()
    if worse is not None:
        worse.hold_in(dtype)
    guidance = Guidance.limited(scale, interval, worse, own.rescale if rescale is None else rescale, own.norm)
    Guidance.of(guidance).check_fits(teacher.denoiser)
    return guidance


def fake_guidance_like(teacher: float | Guidance, scale: float) -> float | Guidance:
    """Classifier-free guidance of the fake score, rescaled as the teacher's is."""
    return Guidance.limited(scale, None, None, Guidance.of(teacher).rescale, Guidance.of(teacher).norm)


def guidance_facts(
    scale: float, interval: Sequence[float] | None, guide: Denoiser | str | Path | None, rescale: float | None
) -> dict[str, Any]:
    """How the teacher was guided, as plain values for the model card."""
    facts = {"guidance": scale, "guidance_interval": None if interval is None else list(interval)}
    facts["guidance_rescale"] = rescale
    facts["guide"] = None if guide is None else described_source(guide)
    return {name: value for name, value in facts.items() if value is not None}


def described_source(source: Denoiser | GenerativeModel | str | Path) -> Any:
    """Where a network is from, as plain values: its path, or its description."""
    if isinstance(source, GenerativeModel):
        return source.denoiser.spec()
    return str(source) if isinstance(source, str | Path) else source.spec()


def learners(
    roles: Roles,
    teacher: Denoiser,
    base: Denoiser,
    student: Denoiser | str | Path | None,
    fake_score: Denoiser | str | Path | None,
    with_fake_score: bool,
) -> tuple[Denoiser, Denoiser | None]:
    """The initial student and fake score, as these roles make them of what is given, or of the teacher; no dropout.

    A path is that of a run checkpoint, an exported folder, or a LoRA file (.safetensors) of the teacher. Without a fake
    score (an objective that needs none) the second is None.

    Raises:
        ValueError: for a network without parameters, or of another shape or other classes than the student sees.
    """
    if fake_score is not None and not with_fake_score:
        raise ValueError("this objective needs no fake score: leave fake_score out")
    student = roles.start("student", _given(student), teacher, base)
    fake_score = roles.start("fake_score", _given(fake_score), teacher, base) if with_fake_score else None
    for name, other in (("teacher", teacher), ("fake_score", fake_score)):
        if other is None:
            continue
        if other.sample_shape != student.sample_shape or not fits(other.takes, student.takes):
            raise ValueError(
                f"{name} and student see the same samples and conditions: expected shape {student.sample_shape} and "
                f"{declared(student.takes)} (or none), got {other.sample_shape} and {declared(other.takes)}"
            )
    return student, fake_score


def configure_blocks(
    read: Sequence[Denoiser | None],
    others: Sequence[Denoiser | None],
    feature_blocks: Sequence[int] | None,
    gradient_checkpointing: bool,
) -> None:
    """Read features of `read` behind these blocks, and keep no activations inside of any blocks; in place.

    Raises:
        ValueError: where a network cannot.
    """
    for denoiser in read if feature_blocks is not None else ():
        if denoiser is not None:
            denoiser.network.read_features_at(cast("Sequence[int]", feature_blocks))
    for denoiser in (*read, *others) if gradient_checkpointing else ():
        if denoiser is not None:
            denoiser.network.checkpoint_gradients(at_rest_as_now)


def _given(source: Denoiser | str | Path | None) -> Denoiser | Path | None:
    if isinstance(source, str | Path):
        return Path(source) if Path(source).suffix == ".safetensors" else load_model(source).denoiser
    return source


def known_sigma_data(given: float | None, denoiser: Denoiser, facts: dict[str, Any]) -> float:
    """The standard deviation of the data: what is given, or what the fake score's (else teacher's) EDM knows.

    An imported teacher, whose network may not hold it, has it among its facts.

    Raises:
        ValueError: where neither is there, or it is not positive.
    """
    if given is None and isinstance(denoiser.preconditioning, EDM):
        return denoiser.preconditioning.sigma_data
    given = facts.get("sigma_data") if given is None else given
    if given is None or not given > 0:
        raise ValueError(
            "sigma_data is positive, and known only where the fake score has EDM preconditioning or the teacher was "
            f"imported: got {given}; give the data's standard deviation"
        )
    return given


def fitting_pairs(file: str, student: Denoiser, guidance: float | Guidance) -> TeacherPairs:
    """The pairs of a file, made for such a student and guidance; raises as `TeacherPairs` does."""
    pairs = TeacherPairs.load(file)
    pairs.check_fits(student.sample_shape, student.takes, guidance)
    return pairs
