"""Configurations and checkpoints that come with the package, found by name.

In an installed package they lie in fdistill/shipped, where setup.py puts them; in a checkout at its top.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_YAML = ".yaml"


def shipped(folder: str) -> Path:
    """The folder "configs" or "checkpoints" of this installation or checkout."""
    installed = _PACKAGE / "shipped" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder


def configurations() -> dict[str, Path]:
    """The configuration files by name: the path below configs without .yaml, as quickstart/student."""
    folder = shipped("configs")
    files = sorted(folder.rglob(f"*{_YAML}"), key=lambda file: (len(file.relative_to(folder).parts), file))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def checkpoints() -> dict[str, Path]:
    """The folders of the checkpoints by name."""
    return {record.parent.name: record.parent for record in sorted(shipped("checkpoints").glob("*/fdistill.json"))}


def configuration(name: str | Path) -> Path:
    """The configuration file of a path or a name, with or without .yaml; a file in the working directory wins.

    A path where there is nothing, and no preset of that name, comes back as it is.
    """
    given = Path(name)
    with_suffix = given if given.suffix == _YAML else Path(f"{given}{_YAML}")
    own = next((file for file in (given, with_suffix) if file.is_file()), given)
    return own if own.is_file() else configurations().get(with_suffix.as_posix().removesuffix(_YAML), given)


def checkpoint(name: str | Path) -> Path:
    """The checkpoint of a path or a name; a file or folder in the working directory wins.

    A path where there is nothing, and no preset of that name, comes back as it is.
    """
    given = Path(name)
    return given if given.exists() else checkpoints().get(str(name), given)
