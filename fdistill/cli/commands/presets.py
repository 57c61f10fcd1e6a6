"""`fdistill presets`: the configurations and checkpoints that come with the package, by name."""

from pathlib import Path

from fdistill.core.presets import checkpoints, configurations


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
    """The first line below the title of a model card."""
    below = card.read_text(encoding="utf-8").partition("\n# ")[2].splitlines()
    return next((line for line in below[1:] if line), "")
