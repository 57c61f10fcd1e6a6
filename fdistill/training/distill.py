"""A teacher distilled by one call, by default as configs/quickstart/student.yaml says."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from fdistill.core.places import require_writable
from fdistill.core.presets import configurations
from fdistill.core.spec import named
from fdistill.core.yaml_files import read_yaml
from fdistill.data import GenerativeDataModule, remembered_data, require_data
from fdistill.models.denoiser import Denoiser
from fdistill.objectives import FDistill, Objective
from fdistill.sampling.generator import GenerativeModel
from fdistill.theory.divergences import FDivergence
from fdistill.theory.noise_levels import NoiseLevels
from fdistill.training.argument_checks import First
from fdistill.training.callbacks import LastCheckpoint, TurnProgressBar
from fdistill.training.distillation import DistillationModule
from fdistill.training.loggers import JsonlLogger
from fdistill.training.quiet import quiet

_OF_THE_RUN = ("callbacks", "callbacks+", "logger", "default_root_dir")  # of a trainer section; ours here
_OPTIMIZERS = ("student_optimizer", "fake_score_optimizer")


def distill(
    teacher: GenerativeModel | str | Path,
    data: GenerativeDataModule | None = None,
    objective: Objective | str = "f-distill",
    divergence: FDivergence | str | None = None,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    student_lr: float | None = None,
    fake_score_lr: float | None = None,
    sigma_init: First | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **settings: Any,
) -> GenerativeModel:
    """Train a one-step student of a teacher, and return its moving average; a progress bar shows the turns.

    What is not given is that of the quick start's student: 1200 turns, Jensen-Shannon with an adversarial term,
    sigma_init 5. The same settings and seed on the command line make the same student.

    Args:
        teacher: a model, the path of a checkpoint or an exported folder, or the name of a shipped one: digits-teacher.
        data: real samples; None for those that the teacher was trained on.
        objective: "f-distill", an objective, or the name of one of `fdistill.objectives` that needs no arguments.
        divergence: of f-distill, an f-divergence or its name in `fdistill.theory.divergences`.
        steps: turns, one batch each, >= 1.
        batch_size: of the data that the teacher remembers; data that you give has its own.
        student_lr: learning rate of the student.
        fake_score_lr: learning rate of fake score and discriminator.
        sigma_init: noise level that the student starts from, or "auto" for one that the teacher finds.
        seed: of all noise, and of the order of the data that the teacher remembers.
        out: new or empty folder for checkpoints/last.ckpt and metrics.jsonl; None writes nothing.
        settings: other arguments of `DistillationModule`.

    Raises:
        ValueError: in one line, for arguments that are out of range or do not fit each other.
    """
    preset, common = (read_yaml(configurations()[name]) for name in ("quickstart/student", "trainer"))
    _check(teacher, steps, data, batch_size, out, settings)
    arguments: dict[str, Any] = preset["model"]["init_args"] | settings
    arguments |= {"teacher": teacher, "seed": seed} | (
        {} if sigma_init is None and not settings.get("student_times") else {"sigma_init": sigma_init}
    )
    arguments["objective"] = _objective(objective, divergence, preset["model"]["init_args"]["objective"])
    if isinstance(arguments["noise_levels"], dict):
        levels = arguments["noise_levels"]
        arguments["noise_levels"] = named(NoiseLevels, levels["class_path"])(**levels["init_args"])
    if not isinstance(arguments["noise_levels"], NoiseLevels):
        raise ValueError(f"noise_levels is one of fdistill.theory.noise_levels: got {arguments['noise_levels']!r}")
    for name, rate in zip(_OPTIMIZERS, (student_lr, fake_score_lr), strict=True):
        arguments[name] = _optimizer(arguments[name], rate)
    with quiet():
        module = DistillationModule(**arguments)
        changes = {"seed": seed} | ({} if batch_size is None else {"batch_size": batch_size})
        real = remembered_data(module.teacher_facts, **changes) if data is None else data
        trainer = common["trainer"] | preset["trainer"] | ({} if steps is None else {"max_steps": steps})
        _trainer(trainer, out).fit(module, real)
    return module.generative_model().merged()


def _check(
    teacher: object,
    steps: int | None,
    data: GenerativeDataModule | None,
    batch_size: int | None,
    out: str | Path | None,
    settings: dict[str, Any],
) -> None:
    if not isinstance(teacher, GenerativeModel | Denoiser | str | Path):
        raise ValueError(f"teacher is a model, a path or the name of a shipped one: got {teacher!r}")
    if not isinstance(settings.get("renoise_levels", ()), Sequence):
        raise ValueError(f"renoise_levels are noise levels, as [2.0, 0.5]: got {settings['renoise_levels']!r}")
    if steps is not None and not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"steps is a whole number of turns and positive: got {steps!r}")
    if data is not None and batch_size is not None:
        raise ValueError(f"data has a batch size of its own: expected one of the two, got data and {batch_size}")
    if data is not None:
        require_data(data)
    if out is not None:
        require_writable(Path(out) / "metrics.jsonl")
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ValueError(f"a run needs a new or empty folder: {out} is there already; name another one")
    known = set(inspect.signature(DistillationModule).parameters) - set(_OPTIMIZERS)
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(f"distill takes no {unknown[0]}: expected one of {', '.join(sorted(known))}")


def _objective(given: Objective | str, divergence: FDivergence | str | None, preset: dict[str, Any]) -> Objective:
    """What was given, or built by its name; f-distill as the preset has it, with the divergence that was given."""
    kind = (
        type(given) if isinstance(given, Objective) else named(Objective, {"f-distill": "FDistill"}.get(given, given))
    )
    if divergence is not None and (isinstance(given, Objective) or kind is not FDistill):
        raise ValueError(f"divergence is that of f-distill: got one beside {kind.__name__}; give it to the objective")
    if isinstance(given, Objective):
        return given
    if kind is not FDistill:
        return _by_defaults(kind)
    arguments = preset["init_args"]
    chosen = arguments["divergence"] if divergence is None else divergence
    if isinstance(chosen, str):
        chosen = _by_defaults(named(FDivergence, chosen))
    if not isinstance(chosen, FDivergence):
        raise ValueError(f"divergence is an FDivergence or the name of one: got {chosen!r}")
    return FDistill(**arguments | {"divergence": chosen})


def _by_defaults(kind: type[Any]) -> Any:
    needed = [name for name, each in inspect.signature(kind).parameters.items() if each.default is each.empty]
    if needed:
        raise ValueError(f"{kind.__name__} needs {', '.join(needed)}: give an object in place of its name")
    return kind()


def _optimizer(described: dict[str, Any], rate: float | None) -> Callable[..., torch.optim.Optimizer]:
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise ValueError(f"a learning rate is a positive, finite number: got {rate!r}")
    kind = getattr(torch.optim, described["class_path"].rpartition(".")[2])
    return functools.partial(kind, **described["init_args"] | ({} if rate is None else {"lr": rate}))


def _trainer(settings: dict[str, Any], out: str | Path | None) -> L.Trainer:
    kept = {name: value for name, value in settings.items() if name not in _OF_THE_RUN}
    if out is None:
        return L.Trainer(**kept, logger=False, enable_checkpointing=False, callbacks=[TurnProgressBar()])
    callbacks = [TurnProgressBar(), LastCheckpoint()]
    return L.Trainer(**kept, default_root_dir=str(out), logger=JsonlLogger(str(out)), callbacks=callbacks)
