"""Modules of the user's own, by --import: their classes are known to configurations, also in further processes."""

import os
import sys

from fdistill.cli.commands import UsageError

_IMPORTED: list[str] = []


def import_modules(arguments: list[str]) -> list[str]:
    """Take `--import MODULE` out of the arguments and import each, looking in the working directory too."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file of yours does not hide a library
    rest, names = [], iter(arguments)
    for argument in names:
        if argument != "--import":
            rest.append(argument)
            continue
        module = next(names, None)
        if module is None:
            raise UsageError("--import needs the name of a module")
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            if error.name != module.split(".")[0]:
                raise
            raise UsageError(f"--import {module}: there is no such module here or among the installed ones") from error
        _IMPORTED.append(module)
    return rest


def imported() -> list[str]:
    """All that were."""
    return list(_IMPORTED)
