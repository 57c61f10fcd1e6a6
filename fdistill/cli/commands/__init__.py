"""The commands that need no trainer. Their names and summaries are here, so that help costs no imports."""

import importlib
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from fdistill.cli.commands.explain import explain, raised_by_class

__all__ = ["VERBS", "UsageError", "Verb", "explain", "run_verb"]


class UsageError(Exception):
    """The command line itself is wrong; exit status 2."""


class Verb(NamedTuple):
    """A command: its summary, and the module in which a function of the same name runs it."""

    summary: str
    module: str
    positional: bool = False
    several: str | None = None
    """The function's list that takes all arguments which belong to no option."""
    listed: str | None = None
    """The function's list of numbers that takes all arguments after its option."""
    function: str | None = None
    """Where Python keeps the command's name for itself."""
    of_fit: str | None = None
    """The function's list that takes all other arguments, which are those of fit."""


VERBS = {
    "sample": Verb(
        "pictures from a checkpoint or an exported folder", "fdistill.cli.commands.sample", listed="guidance_interval"
    ),
    "evaluate": Verb(
        "student beside teacher beside real data: report.json and a page", "fdistill.cli.commands.evaluate"
    ),
    "export": Verb(
        "a run checkpoint becomes a folder that diffusers loads",
        "fdistill.cli.commands.export",
        positional=True,
        listed="guidance_interval",
    ),
    "import": Verb(
        "a model that others trained becomes a teacher: diffusers, safetensors, EDM",
        "fdistill.cli.commands.import_model",
        positional=True,
        function="import_model",
    ),
    "pairs": Verb("latents and what a teacher makes of them, for DMD", "fdistill.cli.commands.pairs", positional=True),
    "encode": Verb(
        "a folder of images becomes latents of a VAE, to train on", "fdistill.cli.commands.encode", positional=True
    ),
    "encode-prompts": Verb(
        "prompts become embeddings of a pipeline's text encoders, to train on",
        "fdistill.cli.commands.encode_prompts",
        positional=True,
        function="encode_prompts",
    ),
    "average": Verb(
        "another average of a run's weights, of a length given or measured",
        "fdistill.cli.commands.average",
        positional=True,
        listed="lengths",
    ),
    "consolidate": Verb(
        "one file of a sharded run's checkpoint and the folder beside it",
        "fdistill.cli.commands.consolidate",
        positional=True,
    ),
    "plan": Verb(
        "memory, FLOPs and days of a fit on a kind and number of GPUs, before it is started",
        "fdistill.cli.commands.plan",
        of_fit="settings",
    ),
    "submit": Verb(
        "queue a fit: CONFIG..., then its options; here, or --on ray, slurm, kubernetes",
        "fdistill.cli.commands.jobs",
        of_fit="settings",
    ),
    "jobs": Verb("the queued runs: state, step, seconds, exit status", "fdistill.cli.commands.jobs"),
    "stop": Verb("end a run after it has saved", "fdistill.cli.commands.jobs", positional=True),
    "resume": Verb("continue a run from its last checkpoint", "fdistill.cli.commands.jobs", positional=True),
    "logs": Verb("what a run has printed", "fdistill.cli.commands.jobs", positional=True),
    "diagnose": Verb(
        "do a teacher's deterministic samples crowd together, and why",
        "fdistill.cli.commands.diagnose",
        positional=True,
    ),
    "dashboard": Verb(
        "how runs go: one page of curves and pictures", "fdistill.cli.commands.dashboard", several="runs"
    ),
    "serve": Verb(
        "generators over HTTP: OpenAI's images API, and a page", "fdistill.cli.commands.serve", several="folders"
    ),
    "presets": Verb("configurations and checkpoints that are found by name", "fdistill.cli.commands.presets"),
    "doctor": Verb("versions, devices, and what is wrong or slow here", "fdistill.cli.commands.doctor"),
}


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Parse the arguments by the signature and docstring of the verb's function, and call it."""
    from jsonargparse import ArgumentError, ArgumentParser

    from fdistill.cli.commands.yaml_options import read_options_as_yaml_files

    read_options_as_yaml_files()
    verb = VERBS[name]
    function: Callable[..., None] = getattr(importlib.import_module(verb.module), verb.function or name)
    parser = ArgumentParser(prog=f"fdistill {name}", exit_on_error=False)
    skipped: set[Any] = {verb.several, verb.listed, verb.of_fit} - {None}
    parser.add_function_arguments(function, as_positional=verb.positional, skip=skipped, sub_configs=True)
    if verb.several is not None:
        parser.add_argument(verb.several, nargs="*", type=str, help="one or several")
    if verb.listed is not None:
        parser.add_argument(f"--{verb.listed}", nargs="+", type=float, help="one or several, a blank between them")
    options = {option: parameter.annotation for option, parameter in inspect.signature(function).parameters.items()}
    switches = {f"--{option}" for option, annotation in options.items() if annotation is bool}
    passed = {}
    if verb.of_fit is not None:
        arguments, passed[verb.of_fit] = _own_and_others(arguments, options)
    try:
        values = parser.parse_args(_switched([_underscored(given) for given in arguments], switches))
    except (ArgumentError, TypeError) as error:
        raise UsageError(f"{explain(str(error), options)} (fdistill {name} --help tells the options)") from error
    try:
        built = parser.instantiate_classes(values).as_dict()
    except Exception as error:
        raise raised_by_class(error) from error
    function(**built, **passed)
    return 0


def _underscored(argument: str) -> str:
    """--best-of as --best_of; values stay as they are."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def _switched(arguments: list[str], switches: Collection[str]) -> list[str]:
    """--overwrite as --overwrite=true, where neither true nor false follows."""
    found: list[str] = []
    for argument in arguments:
        follows = bool(found) and found[-1] in switches
        if follows and argument in ("true", "false"):
            found[-1] += f"={argument}"
            continue
        found[-1:] = [f"{found[-1]}=true"] if follows else found[-1:]
        found.append(argument)
    return [f"{each}=true" if each in switches else each for each in found]


def _own_and_others(arguments: Sequence[str], options: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments that belong to these options (and --help), and all others, each in order."""
    own, others, rest = [], [], iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if name in ("-h", "--help"):
            own.append(argument)
        elif name.removeprefix("--") in options:
            own.append(argument)
            own.extend(itertools.islice(rest, "=" not in argument))
        else:
            others.append(argument)
    return own, others
