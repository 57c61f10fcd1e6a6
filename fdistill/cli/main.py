"""The front door: `fdistill fit|validate|test|predict` (LightningCLI) and `sample`, `evaluate`, `export`, `doctor`."""

import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Sequence

from fdistill.cli.commands import VERBS, UsageError, run_verb
from fdistill.cli.commands.explain import choices
from fdistill.cli.own_modules import import_modules

_TRAINER_VERBS = ("fit", "validate", "test", "predict")
_HELP = """usage: fdistill [--version] [--debug] [--import MODULE] COMMAND [OPTIONS]

Turn a diffusion model into a generator that needs one network evaluation.

train:
  fit        train a teacher (TeacherModule), or distil it into a one-step student (DistillationModule)
  validate   measure a checkpoint on the held-out split
  test       the same as validate, for loggers that keep tests apart
  predict    run a checkpoint over the held-out labels, for callbacks of your own

use what was trained:
{verbs}

options, before or after the command:
  --import MODULE   make your own classes known to --config files; repeatable
  --debug           show the traceback of an error
  --version         show the version

first steps:
  fdistill fit --config trainer --config quickstart/teacher
  fdistill fit --config trainer --config quickstart/student
  fdistill sample --checkpoint runs/quickstart/train-student/checkpoints/last.ckpt

Files given by --config, or names that fdistill presets lists, are merged in order, options after them win,
--print_config shows the result, and --ckpt_path last continues a run. fdistill COMMAND --help tells the
options of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status and prints one line to stderr for every error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(import_modules(arguments))
    except SystemExit as stop:  # --help and --print_config, and lightning after an interrupt
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # whoever reads has enough: `fdistill presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("fdistill: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"fdistill: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(verbs="\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())))
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"fdistill {importlib.metadata.version('fdistill')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in VERBS:
        return run_verb(command, rest)
    if command in _TRAINER_VERBS:
        from fdistill.cli.fit import run_trainer  # several seconds of imports that the other verbs do without

        run_trainer([command, *rest])
        return 0
    raise UsageError(f"there is no command {command!r}{choices(command, [*_TRAINER_VERBS, *VERBS])}")


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with its kind where the message alone would not tell."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}; name a file or folder that you may use"
    text = " ".join(_without_traceback(str(error)).split())
    known = isinstance(error, ValueError | OSError | RuntimeError | UsageError) or _is_from_lightning(error)
    return text if known and text else f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


def _without_traceback(message: str) -> str:
    """What was raised in a worker process of a DataLoader, whose message is a traceback that ends with it."""
    lines = message.strip().splitlines()
    if not lines or not re.match(r"Caught \w+ in DataLoader worker process", lines[0]):
        return message
    return re.sub(r"^[\w.]+: ", "", lines[-1])


def _is_from_lightning(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "lightning"


if __name__ == "__main__":
    sys.exit(main())
