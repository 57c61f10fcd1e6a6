"""The front door: `fdistill fit|validate|test|predict` (LightningCLI) and `sample`, `evaluate`, `export`, `doctor`."""

import os
import sys
import traceback
from collections.abc import Sequence

from fdistill.commands import VERBS, UsageError, run_verb

_TRAINER_VERBS = ("fit", "validate", "test", "predict")
_HELP = """usage: fdistill [--debug] [--import MODULE] COMMAND [OPTIONS]

train and check (LightningCLI; several --config files compose, --print_config shows the result):
  fit        train a teacher (TeacherModule) or distil it (DistillationModule)
  validate   one pass over the held-out split
  test       the same, under the name of a test
  predict    samples with the held-out labels

use what was trained:
{verbs}

--debug shows the traceback of an error; --import MODULE makes your own classes known (repeatable).
fdistill COMMAND --help tells the options of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status and prints one line to stderr for every error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(_import_modules(arguments))
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
    command, rest = arguments[0], arguments[1:]
    if command in VERBS:
        return run_verb(command, rest)
    if command in _TRAINER_VERBS:
        from fdistill.trainer_cli import run_trainer  # several seconds of imports that the other verbs do without

        run_trainer([command, *rest])
        return 0
    known = ", ".join([*_TRAINER_VERBS, *VERBS])
    raise UsageError(f"there is no command {command!r}: expected one of {known}")


def _import_modules(arguments: list[str]) -> list[str]:
    """Take `--import MODULE` out of the arguments and import each, looking in the working directory too."""
    sys.path.insert(0, os.getcwd())
    rest, names = [], iter(arguments)
    for argument in names:
        if argument != "--import":
            rest.append(argument)
            continue
        module = next(names, None)
        if module is None:
            raise UsageError("--import needs the name of a module")
        __import__(module)
    return rest


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with its kind where the message alone would not tell."""
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError | OSError | RuntimeError | UsageError) and text
    return text if known else f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


if __name__ == "__main__":
    sys.exit(main())
