"""What a distillation starts from: arguments within their rules, and networks that fit each other."""

import copy
import math
from pathlib import Path

from fdistill.checkpoints import load_model
from fdistill.denoiser import Denoiser
from fdistill.generative_model import GenerativeModel
from fdistill.noise_levels import NoiseLevels
from fdistill.preconditioning import EDM


def check_numbers(sigma_init: float, fake_updates: int, adversarial_weight: float, warmup: int) -> None:
    """Raises ValueError where a number of `DistillationModule` is out of its range."""
    if not 0 < sigma_init < math.inf:
        raise ValueError(f"sigma_init is the noise level the student starts from and positive: got {sigma_init}")
    if fake_updates < 1:
        raise ValueError(f"fake_updates_per_student is at least 1: got {fake_updates}")
    if not (0 <= adversarial_weight < math.inf and warmup >= 0):
        raise ValueError(
            f"adversarial_weight and fake_score_warmup are not negative: got {adversarial_weight} and {warmup}"
        )


def check_choices(turn: str, discriminator: str, normaliser: str, fake_noise_levels: NoiseLevels | None) -> None:
    """Raises ValueError for an unknown choice of `DistillationModule`, or two that exclude each other."""
    known = {
        "turn": ("fused", "alternating"),
        "discriminator": ("teacher", "sample"),
        "normaliser": ("sample", "sigma"),
    }
    for (name, choices), got in zip(known.items(), (turn, discriminator, normaliser), strict=True):
        if got not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}: got {got!r}")
    if fake_noise_levels is not None and turn == "fused":
        raise ValueError("a fused turn noises its samples once: fake_noise_levels needs turn alternating")


def teacher_model(source: Denoiser | str | Path) -> GenerativeModel:
    """The teacher to distil and how to sample it: what a checkpoint or exported folder holds, or the denoiser given.

    A denoiser alone says nothing of its sampler: it gets 18 Heun steps on EDM's grid from 80 down to .002.

    Raises:
        CheckpointError: if the file cannot be used.
        ValueError: if it holds a student, which denoises at one noise level only.
    """
    if isinstance(source, Denoiser):
        return GenerativeModel.teacher(source, num_steps=18, sigma_min=0.002, sigma_max=80.0)
    model = load_model(source)
    if model.kind != "teacher":
        raise ValueError(f"a teacher denoises at every noise level: {source} holds a one-step {model.kind}")
    return model


def learners(teacher: Denoiser, student: Denoiser | None, fake_score: Denoiser | None) -> tuple[Denoiser, Denoiser]:
    """Trainable copies of the initial student and fake score; of the teacher where None is given.

    Raises:
        ValueError: for a network without parameters, or of another shape or other classes than the student sees.
    """
    student, fake_score = _trainable(student or teacher, "student"), _trainable(fake_score or teacher, "fake_score")
    for name, other in (("teacher", teacher), ("fake_score", fake_score)):
        if other.sample_shape != student.sample_shape or other.num_classes not in (0, student.num_classes):
            raise ValueError(
                f"{name} and student see the same samples and classes: expected shape {student.sample_shape} and "
                f"{student.num_classes} classes (or none), got {other.sample_shape} and {other.num_classes}"
            )
    return student, fake_score


def known_sigma_data(given: float | None, fake_score: Denoiser) -> float:
    """The standard deviation of the data: what is given, or what the fake score's preconditioning knows.

    Raises:
        ValueError: where neither is there, or it is not positive.
    """
    if given is None and isinstance(fake_score.preconditioning, EDM):
        return fake_score.preconditioning.sigma_data
    if given is None or not given > 0:
        raise ValueError(
            f"sigma_data is positive, and known only where the fake score has EDM preconditioning: got {given}; "
            "give the data's standard deviation"
        )
    return given


def _trainable(denoiser: Denoiser, name: str) -> Denoiser:
    copied = copy.deepcopy(denoiser).requires_grad_(True).train()
    if not any(True for _ in copied.parameters()):
        raise ValueError(
            f"the teacher has no parameters to start the {name} from: give {name} as a denoiser of its own"
        )
    return copied
