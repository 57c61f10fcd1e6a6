"""What the names in a folder or an archive mean: which files are images, what class each is, what is left out."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from fdistill.core.file_suffixes import IMAGE_FORMATS
from fdistill.core.weight_files import brief, shown

LABELS = "dataset.json"
"""Where EDM's dataset_tool writes the class of each image (arXiv 2206.00364)."""

MOST_CLASSES = 1_000_000
_TEXTS = {  # what lies beside images and is none
    *(".txt", ".caption", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".htm"),
    *(".md", ".rst", ".pdf", ".log", ".py", ".sh", ".db", ".ini", ".url", ".md5", ".sha256"),
}
_PLAIN = {"readme", "license", "licence", "copying", "makefile", "checksums"}
_TABLES = re.compile(r"(metadata|labels?|captions?|annotations?|prompts?)\.(jsonl?|csv|tsv|txt|ya?ml)")
_FOREIGN = {"__MACOSX", "@eaDir"}  # folders that macOS and Synology add
_SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing|eval|dev)([-_ ]?(set|data|images?|split|\d|[ab]))*"
)
_NUMBERED = re.compile(r"\d{5,}")


class Sieve:
    """Tells images from other files by their names, and counts those left out that could be taken for data."""

    def __init__(self) -> None:
        self._left: dict[str, list[str]] = {}

    def is_image(self, name: str) -> bool:
        """Whether the file of this name, relative to the folder, is an image. Hidden folders are passed over."""
        *folders, last = PurePosixPath(name).parts
        suffix = PurePosixPath(last.lower()).suffix
        if any(is_passed_over(folder) for folder in folders):
            return False
        if last[0] == ".":
            if suffix in IMAGE_FORMATS:
                self._left.setdefault("hidden", []).append(name)
            return False
        if suffix in IMAGE_FORMATS:
            return True
        if _TABLES.fullmatch(last.lower()):
            self._left.setdefault("of labels or captions", []).append(name)
        elif suffix not in _TEXTS and last.lower() not in _PLAIN:
            self._left.setdefault(suffix or "without a suffix", []).append(name)
        return False

    def left_out(self) -> list[str]:
        """One line for a warning, or none."""
        if not self._left:
            return []
        kinds = ", ".join(f"{len(names)} {kind} ({shown(min(names))})" for kind, names in sorted(self._left.items()))
        return [f"left out, as no images that are read here: {shown(kinds, 400)}"]


class Arranged(NamedTuple):
    """Images in order, with their classes.

    Attributes:
        order: of each image in that order, its place among the names.
        labels: [N] int64, in that order.
        class_names: the label is the place in this list; empty without classes.
        notes: what should be said of it.
    """

    order: list[int]
    labels: Tensor
    class_names: list[str]
    notes: list[str]


def is_passed_over(folder: str) -> bool:
    """Whether a folder of this name is hidden, or made by a system beside the images."""
    return folder[0] == "." or folder in _FOREIGN


def by_numbers(names: Sequence[str], numbers: Sequence[int | None]) -> Arranged:
    """Images with a class number each, or without classes where all are None; in the order of their names."""
    order = sorted(range(len(names)), key=names.__getitem__)
    if all(number is None for number in numbers):
        return Arranged(order, torch.zeros(len(order), dtype=torch.int64), [], [])
    labels = torch.tensor([numbers[i] for i in order])
    return Arranged(order, labels, [str(number) for number in range(int(labels.max()) + 1)], [])


def by_labels_file(names: Sequence[str], content: bytes, where: str) -> Arranged:
    """Images with the classes that EDM's dataset.json gives them: {"labels": [[name, number], ...]}, or null for none.

    Raises:
        ValueError: It is no such file, or names other images than there are.
    """
    form = f'{where} is where EDM\'s dataset_tool writes classes: expected {{"labels": [[name, number], ...]}} or null'
    remedy = "correct it, or rename it where it is something else"
    try:
        labels = json.loads(content)["labels"]
        pairs = [(name, number) for name, number in labels or ()]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{form}, numbers from 0 to {MOST_CLASSES:,}, got other content; {remedy}") from error
    for name, number in pairs:
        if not (type(name) is str and type(number) is int and 0 <= number < MOST_CLASSES):
            raise ValueError(f"{form}, numbers from 0 to {MOST_CLASSES:,}, got {brief([name, number])}; {remedy}")
    if labels is None:
        return by_numbers(names, [None] * len(names))
    number_of = dict(pairs)
    twice = [name for name, number in pairs if number_of[name] != number]
    if twice:
        raise ValueError(f"{where} gives each image one class: got two for {shown(twice[0])}; correct it")
    missing, gone = sorted(set(names) - number_of.keys()), sorted(number_of.keys() - set(names))
    if missing or gone:
        what = f"no label for {len(missing)} of {len(names)} images" if missing else f"{len(gone)} labels without image"
        raise ValueError(
            f"{where} names the images that are there, each once: got {what}, {shown((missing or gone)[0])} for one; "
            "complete it, or restore or remove the images"
        )
    return by_numbers(names, [number_of[name] for name in names])


def by_folders(names: Sequence[str], place: Path, packed: bool) -> Arranged:
    """Images whose class is the first folder in their names, if they are in any; classes are sorted as text.

    Args:
        names: relative to `place`, with slashes.
        place: the folder, for messages.
        packed: whether it is a folder in archives, whose sub-folders nobody can give instead.

    Raises:
        ValueError: Some images lie in folders and some do not, or the folders look like something else than classes.
    """
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    order = sorted(range(len(names)), key=lambda i: (tops[i], names[i]))
    classes = sorted(set(tops))
    if classes == [""]:
        return by_numbers(names, [None] * len(names))
    if "" in classes:
        raise ValueError(
            f"images lie all in class directories or none: got {tops.count('')} images and class folders"
            f" {classes[1:4]} in {place}; move the images into classes, or the sub-folders away"
        )
    deeper = sorted(name for name in names if name.count("/") > 1)
    _check_are_classes(classes, place, packed, len(deeper) == len(names))
    number_of = {name: number for number, name in enumerate(classes)}
    notes = _notes(classes, place, packed)
    if deeper:
        notes.append(f"{len(deeper)} images lie deeper than their class folder ({shown(deeper[0])}) and count for it")
    return Arranged(order, torch.tensor([number_of[tops[i]] for i in order]), classes, notes)


def _check_are_classes(classes: list[str], place: Path, packed: bool, all_deeper: bool) -> None:
    """Raise ValueError for splits, for numbered parts, and for a folder that was given one level too high."""
    some = f"{', '.join(classes[:4])}{' ...' * (len(classes) > 4)}"
    splits = [name for name in classes if _SPLIT.fullmatch(name.lower())]
    if len(splits) == len(classes) or len(splits) > 1:
        first = next((name for name in splits if name.lower().startswith("train")), splits[0])
        deeper = ", whose classes lie one level deeper" * all_deeper
        remedy = f"pack {first} alone" if packed else f"give {place / first}"
        raise ValueError(
            f"sub-folders of images are classes: got {some} in {place}, which look like the splits of a data set"
            f"{deeper}; {remedy}, or rename them where they are classes"
        )
    if all(_NUMBERED.fullmatch(name) for name in classes) and len({len(name) for name in classes}) == 1:
        raise ValueError(
            f"sub-folders of images are classes: got {some} in {place} and no {LABELS}, which look like numbered parts"
            f' of a data set (EDM, FFHQ); write {LABELS} with {{"labels": null}} there for images without classes, or'
            " rename the folders where they are classes"
        )
    if all_deeper and len(classes) == 1:
        raise ValueError(
            f"images lie in the folder or in its class sub-folders: got {classes[0]} alone in {place}, with folders of"
            f" images one level deeper; give {place / classes[0]}"
        )


def _notes(classes: list[str], place: Path, packed: bool) -> list[str]:
    if len(classes) == 1:
        remedy = "pack its files alone" if packed else f"give {place / classes[0]}"
        return [f"all images are of one class, {shown(classes[0])}: {remedy} for images without classes"]
    if all(name.isdecimal() for name in classes):
        for label, (name, by_size) in enumerate(zip(classes, sorted(classes, key=_by_size), strict=True)):
            if name != by_size:
                return [
                    f"classes are numbered in the order of their names as text (as in torchvision): label {label} is "
                    f"the folder {name}; names of equal length, like {classes[0].zfill(max(map(len, classes)))}, are "
                    "in the order of their numbers"
                ]
    return []


def _by_size(digits: str) -> tuple[int, str]:
    """Sorts as the numbers do, of any length."""
    return len(digits.lstrip("0")), digits.lstrip("0")
