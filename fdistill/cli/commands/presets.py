"""`fdistill presets`: the configurations and checkpoints that come with the package, by name."""

import re
from pathlib import Path

from fdistill.core.presets import checkpoints, configurations

_SAYS_WHAT = re.compile(r"An? [\w -]+: ")


def presets() -> None:
    """List what --config and --checkpoint take by name; a file or folder of that name in the working directory wins."""
    print("configurations, for --config NAME:")
    _print_table({name: _first_comment(file) for name, file in configurations().items()})
    print("\ncheckpoints, for --checkpoint NAME:")
    _print_table({name: _summary(folder / "README.md") for name, folder in checkpoints().items()})


def _print_table(lines: dict[str, str]) -> None:
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        print(f"  {name:<{width}}  {line}".rstrip())


def _first_comment(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# ") else ""


def _summary(card: Path) -> str:
    """The line of a model card that says what it is: "A one-step generator: ..."."""
    return next((line for line in card.read_text(encoding="utf-8").splitlines() if _SAYS_WHAT.match(line)), "")
