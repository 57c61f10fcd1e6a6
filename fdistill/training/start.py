"""What a distillation starts from: arguments within their rules, and networks that fit each other."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fdistill.core.meta_device import drop_weights, without_weights
from fdistill.data import GenerativeDataModule
from fdistill.data.teacher_pairs import TeacherPairs
from fdistill.io.load import load_model
from fdistill.models.denoiser import Denoiser
from fdistill.models.guidance import Guidance
from fdistill.models.networks import train_without_dropout
from fdistill.models.vae import Decoder
from fdistill.objectives import Objective
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.preconditioning import EDM
from fdistill.theory.schedules import Schedule
from fdistill.training.discrimination import Reads
from fdistill.training.rhythm import Turn

Stored = Literal["float32", "bfloat16"]
"""Type of the matrices and kernels of a network that does not learn."""


@contextmanager
def start_at_rank_0(module: nn.Module, asked: bool) -> Iterator[None]:
    """Where it is asked, what the module builds inside has numbers on rank 0 alone; its strategy sends them around."""
    if not asked or rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning sets it
        yield
        return
    with without_weights():
        yield
    drop_weights(module)


def check_numbers(fake_updates: int, warmup: int, **shares: float) -> None:
    """Raises ValueError where a count is too small, or one of the named shares lies outside [0, 1]."""
    if fake_updates < 1:
        raise ValueError(f"fake_updates_per_student is at least 1: got {fake_updates}")
    if warmup < 0:
        raise ValueError(f"fake_score_warmup is not negative: got {warmup}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} lies in [0, 1]: got {share}")


def check_choices(
    turn: str, discriminator: str, fake_noise_levels: NoiseLevels | None, fake_dropout: float, reuse_generated: bool
) -> None:
    """Raises ValueError for an unknown choice of `DistillationModule`, or two that exclude each other."""
    known = {"turn": get_args(Turn), "discriminator": get_args(Reads)}
    for (name, choices), got in zip(known.items(), (turn, discriminator), strict=True):
        if got not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}: got {got!r}")
    if fake_noise_levels is not None and turn == "fused":
        raise ValueError("a fused turn noises its samples once: fake_noise_levels needs turn alternating")
    if fake_dropout and turn == "fused":
        raise ValueError("a fused turn asks the fake score once, with its class: fake_label_dropout needs alternating")
    if reuse_generated and turn == "fused":
        raise ValueError("a fused turn generates for all networks already: reuse_generated needs turn alternating")


def check_needs(
    objective: Objective, discriminator: str, pairs: str | Path | None, r1_weight: float, r1_step: float
) -> None:
    """Raises ValueError where an objective lacks what it needs, or is given what nobody reads."""
    name, needs = type(objective).__name__, objective.needs
    if needs.fake_score == "nothing" and not needs.discriminator:
        raise ValueError(
            f"{name} needs neither a fake score nor a discriminator, so nothing would learn beside the student: "
            "ask for one of them in its needs"
        )
    if needs.discriminator and discriminator == "none":
        what = "the density ratio" if needs.ratio else "a discriminator's logit"
        raise ValueError(f"{name} needs {what}: set discriminator to teacher, fake_score or sample, got none")
    if needs.pairs and pairs is None:
        raise ValueError(
            f"{name} needs pairs of the teacher's ODE: make them with `fdistill pairs TEACHER FILE`, and set pairs "
            "to FILE; got none"
        )
    if pairs is not None and not needs.pairs:
        raise ValueError(f"{name} reads no pairs: leave pairs out, or use DMD; got {pairs}")
    for given, value in (("r1_weight", r1_weight), ("r1_step", r1_step)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{given} is finite and not negative: got {value}")
    if r1_weight and not needs.discriminator:
        raise ValueError(f"r1_weight penalises the discriminator, and {name} has none: set it to 0, got {r1_weight}")


def check_stored(stored: str, reads: str, r1_weight: float) -> torch.dtype:
    """The type to hold the teacher in.

    Raises:
        ValueError: for another one than `Stored`, or where R1 would differentiate features of bfloat16.
    """
    if stored not in get_args(Stored):
        raise ValueError(f"teacher_dtype is one of {', '.join(get_args(Stored))}: got {stored!r}")
    if stored == "bfloat16" and reads == "teacher" and r1_weight:
        raise ValueError(
            "r1_weight is a penalty of gradients, which bfloat16 features lose: expected teacher_dtype float32, or "
            f"another discriminator than teacher, got {stored}"
        )
    return getattr(torch, stored)


def check_instance_noise(instance_noise: float | Schedule, objective: Objective) -> None:
    """Raises ValueError for a negative constant, or where no discriminator would see the noise."""
    if not isinstance(instance_noise, Schedule) and not 0 <= instance_noise < math.inf:
        raise ValueError(f"instance_noise is finite and not negative: got {instance_noise}")
    if instance_noise and not objective.needs.discriminator:
        got = type(instance_noise).__name__ if isinstance(instance_noise, Schedule) else instance_noise
        raise ValueError(
            f"instance_noise is for a discriminator, and {type(objective).__name__} has none: set it to 0, got {got}"
        )


def check_one_step(objective: Objective, levels: tuple[float, ...]) -> None:
    """Raises ValueError where an objective asks for the one latent of a sample, and samples have several."""
    if objective.needs.latents and len(levels) > 1:
        raise ValueError(
            f"{type(objective).__name__} is about the map of a one-step student: leave renoise_levels out, got "
            f"{list(levels[1:])}"
        )


def check_real(objective: Objective, data: GenerativeDataModule) -> None:
    """Raises ValueError where a discriminator would have nothing real to learn from."""
    if objective.needs.real and not data.has_real:
        raise ValueError(
            f"{type(objective).__name__} needs real data for its discriminator: {type(data).__name__} has none; give a "
            "dataset, or use an objective without ratio and adversarial term (DiffInstruct, SiD)"
        )


def check_latents(teacher: Decoder | None, data: GenerativeDataModule) -> None:
    """Raises ValueError where latents of the data have another scale than those of the teacher; reads both VAEs."""
    made = data.decoder
    if teacher is None or made is None:
        return
    for name, one, other in zip(("factor", "shift"), teacher.scale, made.scale, strict=True):
        sizes = {one.numel(), other.numel()} - {1}  # 1: the same for all channels
        if len(sizes) > 1 or not bool((one == other).all()):
            raise ValueError(
                f"latents are of the teacher's VAE: expected the {name} {_numbers(one)} of {teacher.folder}, got "
                f"{_numbers(other)} of {made.folder}; encode the images with the teacher's"
            )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())


def check_guidance(guidance: float, fake_guidance: float, fake_dropout: float, fake_score: Denoiser | None) -> None:
    """Raises ValueError for scales that are not finite, or guidance of a fake score that knows no "no class"."""
    if not (math.isfinite(guidance) and math.isfinite(fake_guidance)):
        raise ValueError(f"guidance and fake_guidance are finite: got {guidance} and {fake_guidance}")
    conditional = fake_score is not None and fake_score.num_classes > 0
    if fake_guidance != 1 and not conditional:
        raise ValueError(f"fake_guidance needs a class-conditional fake score: leave it 1, got {fake_guidance}")
    if fake_dropout and not conditional:
        raise ValueError(f"fake_label_dropout needs a class-conditional fake score: leave it 0, got {fake_dropout}")
    guided = fake_dropout or fake_guidance != 1
    if guided and fake_score is not None and not fake_score.network.knows_no_class:
        raise ValueError(
            f'{type(fake_score.network).__name__} has no weights for "no class": expected fake_label_dropout 0 and '
            f"fake_guidance 1, got {fake_dropout} and {fake_guidance}"
        )
    if fake_guidance != 1 and not fake_dropout:
        raise ValueError(
            "a guided fake score has to learn samples without their class too: set fake_label_dropout (0.1, say) "
            f"for fake_guidance {fake_guidance}"
        )


def check_imitation(imitation: float, fake_score: Denoiser | None, student: Denoiser) -> None:
    """Raises ValueError where the fake score cannot follow the student's weights."""
    if not 0 <= imitation <= 1:
        raise ValueError(
            f"imitation is the share of its own weights that a fake score keeps, in [0, 1]: got {imitation}"
        )
    if imitation == 1:
        return
    if fake_score is None:
        raise ValueError(f"imitation needs a fake score, which this objective has not: leave it 1, got {imitation}")
    shapes = [[parameter.shape for parameter in net.parameters()] for net in (fake_score, student)]
    meanings = [net.preconditioning.spec() for net in (fake_score, student)]
    if shapes[0] != shapes[1] or meanings[0] != meanings[1]:
        raise ValueError(
            "a fake score imitates a student of its own architecture and preconditioning: expected the same, got "
            "others; leave imitation 1"
        )


def teacher_model(source: Denoiser | GenerativeModel | str | Path) -> GenerativeModel:
    """The teacher to distil and how to sample it: what a checkpoint or exported folder holds, or the denoiser given.

    A denoiser alone says nothing of its sampler: it gets 18 Heun steps on EDM's grid from 80 down to .002, or between
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


def teacher_guidance(
    scale: float,
    interval: Sequence[float] | None,
    guide: Denoiser | str | Path | None,
    teacher: Denoiser,
    dtype: torch.dtype,
) -> float | Guidance:
    """What guides the teacher; its guide is a frozen copy of a denoiser, or that of a teacher's checkpoint, in dtype.

    Raises:
        CheckpointError: if the guide's file cannot be used.
        ValueError: for an interval or a guide that does not fit, or that a scale of 1 would leave without effect.
    """
    worse = None if guide is None else copy.deepcopy(teacher_model(guide).denoiser).requires_grad_(False).eval()
    if worse is not None:
        worse.hold_in(dtype)
    guidance = Guidance.limited(scale, interval, worse)
    Guidance.of(guidance).check_fits(teacher)
    return guidance


def guidance_facts(
    scale: float, interval: Sequence[float] | None, guide: Denoiser | str | Path | None
) -> dict[str, Any]:
    """How the teacher was guided, as plain values for the model card."""
    facts = {"guidance": scale, "guidance_interval": None if interval is None else list(interval)}
    facts["guide"] = None if guide is None else described_source(guide)
    return {name: value for name, value in facts.items() if value is not None}


def described_source(source: Denoiser | GenerativeModel | str | Path) -> Any:
    """Where a network is from, as plain values: its path, or its description."""
    if isinstance(source, GenerativeModel):
        return source.denoiser.spec()
    return str(source) if isinstance(source, str | Path) else source.spec()


def learners(
    teacher: Denoiser,
    student: Denoiser | str | Path | None,
    fake_score: Denoiser | str | Path | None,
    with_fake_score: bool,
) -> tuple[Denoiser, Denoiser | None]:
    """Trainable copies of the initial student and fake score, without dropout; of the teacher where None is given.

    A path is that of a run checkpoint or exported folder. Without a fake score (an objective that asks for none) the
    second is None.

    Raises:
        ValueError: for a network without parameters, or of another shape or other classes than the student sees.
    """
    if fake_score is not None and not with_fake_score:
        raise ValueError("this objective asks for no fake score: leave fake_score out")
    student = _trainable(_denoiser(student) or teacher, "student")
    fake_score = _trainable(_denoiser(fake_score) or teacher, "fake_score") if with_fake_score else None
    for name, other in (("teacher", teacher), ("fake_score", fake_score)):
        if other is None:
            continue
        if other.sample_shape != student.sample_shape or other.num_classes not in (0, student.num_classes):
            raise ValueError(
                f"{name} and student see the same samples and classes: expected shape {student.sample_shape} and "
                f"{student.num_classes} classes (or none), got {other.sample_shape} and {other.num_classes}"
            )
    return student, fake_score


def known_sigma_data(given: float | None, denoiser: Denoiser, facts: dict[str, Any]) -> float:
    """The standard deviation of the data: what is given, or what the fake score's (else student's) EDM knows.

    An imported teacher, whose network may know nothing of it, tells it among its facts.

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


def _denoiser(source: Denoiser | str | Path | None) -> Denoiser | None:
    return load_model(source).denoiser if isinstance(source, str | Path) else source


def _trainable(denoiser: Denoiser, name: str) -> Denoiser:
    copied = copy.deepcopy(denoiser).requires_grad_(True)
    train_without_dropout(copied)
    if not any(True for _ in copied.parameters()):
        raise ValueError(
            f"the teacher has no parameters to start the {name} from: give {name} as a denoiser of its own"
        )
    return copied


def fitting_pairs(file: str, student: Denoiser, guidance: float | Guidance) -> TeacherPairs:
    """The pairs of a file, made for such a student and guidance; raises as `TeacherPairs` does."""
    pairs = TeacherPairs.load(file)
    pairs.check_fits(student.sample_shape, student.num_classes, guidance)
    return pairs
