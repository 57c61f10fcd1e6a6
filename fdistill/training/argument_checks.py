"""The rules of a distillation's arguments: ranges, choices that exclude each other, what an objective needs."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from fdistill.data import GenerativeDataModule
from fdistill.models.adapters import own_parameters
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import Generator
from fdistill.models.vae import Decoder
from fdistill.objectives import Objective
from fdistill.objectives.reward_algorithms import RewardAlgorithm
from fdistill.sampling import Start
from fdistill.sampling.grids import SamplingGrid
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.theory.preconditioning import Direct
from fdistill.theory.schedules import Schedule
from fdistill.training.discrimination import Reads
from fdistill.training.turn_schedule import Turn

Stored = Literal["float32", "bfloat16", "int8"]
"""Type of the matrices and kernels of a network that does not learn."""
First = float | Literal["auto"]
"""The first noise level of a student, or that it is found by the teacher (`fdistill.sampling.start_level`)."""


def is_auto(sigma_init: First | None, start: str, meta_start: bool) -> bool:
    """Whether the first level is to be found.

    Raises:
        ValueError: where it cannot be: from unit variance, or without the teacher's weights on every rank.
    """
    if not isinstance(sigma_init, str):
        return False
    if sigma_init != "auto":
        raise ValueError(f"sigma_init is a noise level, or auto: got {sigma_init!r}")
    if start != "sigma" or meta_start:
        what = f"start {start}" if start != "sigma" else "meta_start true"
        raise ValueError(
            "sigma_init auto denoises sigma z, on every rank: expected start sigma and meta_start false, got "
            f"{what}; give sigma_init a number"
        )
    return True


def check_levels(sigma_init: float, renoise_levels: Sequence[float]) -> tuple[float, ...]:
    """All noise levels of the student, falling.

    Raises:
        ValueError: where they do not fall or one is not positive.
    """
    if not 0 < sigma_init < math.inf:
        raise ValueError(f"sigma_init is the noise level the student starts from and positive: got {sigma_init}")
    levels = (float(sigma_init), *map(float, renoise_levels))
    if any(not 0 < low < high for high, low in itertools.pairwise(levels)):
        raise ValueError(
            "renoise_levels are the noise levels of a student's further steps: expected positive numbers that fall "
            f"from sigma_init {sigma_init}, got {list(renoise_levels)}"
        )
    return levels


def check_numbers(fake_updates: int, warmup: int, **shares: float) -> None:
    """Raises ValueError where a count is too small, or one of the named shares lies outside [0, 1]."""
    if fake_updates < 1:
        raise ValueError(f"fake_updates_per_student is at least 1: got {fake_updates}")
    if warmup < 0:
        raise ValueError(f"fake_score_warmup is not negative: got {warmup}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} lies in [0, 1]: got {share}")


def check_arguments(
    objective: Objective,
    turn: str,
    discriminator: str,
    fake_noise_levels: NoiseLevels | None,
    fake_dropout: float,
    reuse_generated: bool,
    fake_updates: int,
    warmup: int,
    pairs: str | Path | None,
    r1_weight: float,
    r1_step: float,
    instance_noise: float | Schedule,
) -> None:
    """Raises ValueError where arguments of `DistillationModule` break a rule that needs no network to be known."""
    check_choices(turn, discriminator, fake_noise_levels, fake_dropout, reuse_generated)
    check_numbers(fake_updates, warmup, fake_label_dropout=fake_dropout)
    check_needs(objective, discriminator, pairs, r1_weight, r1_step, warmup)
    check_instance_noise(instance_noise, objective)


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
        raise ValueError(
            "a fused turn evaluates the fake score once, with its class: fake_label_dropout needs alternating"
        )
    if reuse_generated and turn == "fused":
        raise ValueError("a fused turn generates for all networks already: reuse_generated needs turn alternating")


def check_needs(
    objective: Objective, discriminator: str, pairs: str | Path | None, r1_weight: float, r1_step: float, warmup: int
) -> None:
    """Raises ValueError where an objective lacks what it needs, or is given what nobody reads."""
    name, needs = type(objective).__name__, objective.needs
    if not needs.others and needs.teacher == "nothing":
        raise ValueError(
            f"{name} needs no teacher, fake score or discriminator, so nothing would tell the student anything: "
            "name one of them in its needs"
        )
    if not needs.others and warmup:
        raise ValueError(
            f"fake_score_warmup is of a fake score or a discriminator, and {name} has neither: set it to 0, got "
            f"{warmup}"
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


def check_one_step(objective: Objective, student: Denoiser, levels: tuple[float, ...], start: Start) -> None:
    """Raises ValueError where an objective, or a generator, is about the one latent of a sample, and gets another."""
    direct = isinstance(student.preconditioning, Direct)
    if direct != isinstance(student.network, Generator) or (direct and (len(levels) > 1 or start != "sigma")):
        raise ValueError(
            "a generator makes a sample of its noise in one step: expected a Generator with preconditioning Direct, "
            f"start sigma and no renoise_levels, got {type(student.network).__name__} with "
            f"{type(student.preconditioning).__name__}, start {start} and {list(levels[1:])}"
        )
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


def check_renoised(algorithm: RewardAlgorithm, steps: int, grid: SamplingGrid | None) -> None:
    """Raises ValueError where a student would be tuned by other samples than its own, which are renoised."""
    etas = algorithm.etas(0, steps)
    if grid is not None or set(etas) != {math.inf}:
        raise ValueError(
            "a student is stochastic by renoising at its own levels: expected a policy gradient in all steps with eta "
            f"inf, and no grid, got {type(algorithm).__name__} with eta {', '.join(f'{eta:g}' for eta in etas)}"
            f"{'' if grid is None else ' and a grid'}"
        )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())


def check_guidance(
    objective: Objective,
    guidance: float,
    fake_guidance: float,
    fake_training_guidance: float,
    projection_guidance: float | None,
    fake_dropout: float,
    fake_score: Denoiser | None,
) -> None:
    """Raises ValueError for scales that are not finite, or guidance of a fake score that knows no "no class"."""
    scales = {"fake_guidance": fake_guidance, "fake_training_guidance": fake_training_guidance}
    if projection_guidance is not None:
        scales["projection_guidance"] = projection_guidance
        if objective.needs.fake_score != "gradient":
            raise ValueError(
                f"projection_guidance is of objectives with a score projection, as SiD: {type(objective).__name__} has "
                f"none; leave it out, got {projection_guidance}"
            )
    if not all(map(math.isfinite, (guidance, *scales.values()))):
        raise ValueError(f"guidance and fake_guidance are finite: got {guidance} and {scales}")
    conditional = fake_score is not None and bool(fake_score.takes)
    guiding = {name: scale for name, scale in scales.items() if scale != 1}
    if guiding and not conditional:
        raise ValueError(f"{'/'.join(guiding)} needs a conditional fake score: leave it 1, got {guiding}")
    if fake_dropout and not conditional:
        raise ValueError(f"fake_label_dropout needs a conditional fake score: leave it 0, got {fake_dropout}")
    if (fake_dropout or guiding) and fake_score is not None and not fake_score.network.knows_no_class:
        raise ValueError(
            f'{type(fake_score.network).__name__} has no weights for "no class": expected fake_label_dropout 0 and '
            f"no guidance of the fake score, got {fake_dropout} and {guiding}"
        )
    if guiding and not fake_dropout:
        raise ValueError(
            "a guided fake score has to learn samples without their class too: set fake_label_dropout (0.1, say) "
            f"for {guiding}"
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
    shapes = [[parameter.shape for parameter in own_parameters(net).values()] for net in (fake_score, student)]
    meanings = [net.preconditioning.spec() for net in (fake_score, student)]
    if shapes[0] != shapes[1] or meanings[0] != meanings[1]:
        raise ValueError(
            "a fake score imitates a student of its own architecture, preconditioning and kind (two adapters of one "
            "rank, or two full networks): expected the same, got others; leave imitation 1"
        )
