"""Places that are checked before any work is done: may something be written there?"""

import os
from pathlib import Path

LORA_RECORD = "fdistill_lora.json"
"""Of a folder with an exported LoRA: the student that it makes of its base."""


def require_writable(path: Path) -> Path:
    """`path`, if a file or folder can be made there; nothing is made.

    Raises:
        OSError: if it lies below a file, or in a folder that is not ours to write.
    """
    above = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    if not above.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {above} is a file; name another place")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"cannot write {path}: {above} is not yours to write; name another place")
    return path


def require_replaceable(folder: Path, *inputs: Path) -> Path:
    """`folder`, if a model may be written there: new, empty, or a model's folder of ours, and none of the inputs.

    Raises:
        ValueError: where something else would be lost.
        OSError: as of `require_writable`.
    """
    require_writable(folder / "README.md")
    place = folder.resolve()
    for needed in (Path.cwd(), *(path.resolve() for path in inputs)):
        if place == needed or place in needed.parents:
            raise ValueError(f"writing {folder} would replace {needed} with it: name another folder")
    ours = any((folder / name).is_file() for name in ("fdistill.json", LORA_RECORD))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        found = sorted(child.name for child in folder.iterdir())[0]
        raise ValueError(
            f"{folder} is replaced only where it holds an exported model: expected that, or an empty or new folder, "
            f"got one with {found}; name another folder"
        )
    return folder
