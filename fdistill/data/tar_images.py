"""Images in uncompressed .tar and .zip files, read where they lie by an index of offsets: nothing is extracted."""

import io
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.core.weight_files import shown
from fdistill.data.archives import CLASS, Member, members
from fdistill.data.image_files import Images, Listing, check_enough, check_whole, packed, warn_of
from fdistill.data.image_names import LABELS, MOST_CLASSES, Arranged, Sieve, by_folders, by_labels_file, by_numbers


class TarImages(Images):
    """Images by shard, offset and size.

    Args:
        shards: the archives.
        names: of the images in them.
        places: [N, 3] int64: shard, offset and size in bytes.
    """

    def __init__(self, shards: list[Path], names: list[str], places: Tensor) -> None:
        self._shards, self._names, self._places = shards, packed(names), places

    def name(self, index: int) -> str:
        return f"{os.fsdecode(self._names[index])} in {self._shards[int(self._places[index, 0])]}"

    def identity(self, index: int) -> tuple[str, int]:
        return os.fsdecode(self._names[index]), int(self._places[index, 2])

    def open(self, index: int) -> BinaryIO:
        shard, offset, size = self._places[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


def list_archives(folder: Path, shards: list[Path]) -> Listing:
    """Find the images in archives; reads every header and, where there are any, class numbers or dataset.json.

    Classes are what an unpacked folder would have (`by_labels_file`, `by_folders`), where a folder that holds all of
    them is the one that was packed; or NAME.cls beside each NAME.jpg holds a class number, as in webdataset. The order
    is that of the unpacked folder.

    Args:
        folder: for messages.
        shards: the archives.

    Raises:
        ValueError: A file is compressed, truncated or damaged, an image is a link, sparse or empty, two have the same
            name, only some images have a class, or there are too few images.
    """
    sieve = Sieve()
    found: list[Member] = []
    numbers: dict[tuple[int, str], int] = {}
    labels: dict[str, Member] = {}
    for shard, file in enumerate(tqdm(shards, desc="indexing", unit="archive", disable=len(shards) < 10)):
        for member in members(shard, file, sieve):
            if member.name.endswith(CLASS):
                if numbers.setdefault((shard, _key(member.name)), number := _class_number(file, member)) != number:
                    raise ValueError(f"an image has one class number: got two for {shown(member.name)} in {file}")
            elif member.name.rpartition("/")[2] == LABELS:
                if labels.setdefault(member.name, member) is not member:
                    raise _twice(member, file, shards[labels[member.name].shard])
            else:
                found.append(member)
    check_enough(len(found), folder)
    arranged = _by_class_files(found, numbers) if numbers else _as_unpacked(found, labels, folder, shards)
    order = [found[i] for i in arranged.order]
    by_name = sorted(order, key=lambda member: (member.name, member.shard))
    for one, other in pairwise(by_name):  # unpacked, the later one would replace the earlier
        if one.name == other.name and (not numbers or one.shard == other.shard):  # numbers are beside the images
            raise _twice(one, shards[one.shard], shards[other.shard])
    check_whole([member.name for member in found if not member.size], len(found), folder)
    warn_of(folder, sieve.left_out() + arranged.notes)
    images = TarImages(shards, [member.name for member in order], torch.tensor([member[1:] for member in order]))
    return Listing(images, arranged.labels, arranged.class_names)


def _as_unpacked(found: list[Member], labels: dict[str, Member], folder: Path, shards: list[Path]) -> Arranged:
    names = [member.name for member in found]
    root = _packed_folder(names, labels)
    inside = [name.removeprefix(root) for name in names]
    if f"{root}{LABELS}" not in labels:
        return by_folders(inside, folder, packed=True)
    file = labels[f"{root}{LABELS}"]
    return by_labels_file(inside, _content(shards[file.shard], file), f"{file.name} in {shards[file.shard]}")


def _packed_folder(names: Sequence[str], labels: dict[str, Member]) -> str:
    """The folder that all images lie in, with a slash at its end: what somebody packed; nothing where there is none."""
    root = ""
    while f"{root}{LABELS}" not in labels:
        tops = {name.removeprefix(root).partition("/")[:2] for name in names}
        if len(tops) > 1 or not all(slash for _, slash in tops):
            break
        root += "".join(tops.pop())
    return root


def _content(file: Path, member: Member) -> bytes:
    with file.open("rb") as opened:
        opened.seek(member.offset)
        return opened.read(member.size)


def _class_number(file: Path, member: Member) -> int:
    text = _content(file, member._replace(size=min(member.size, 32))).decode("ascii", "replace").strip()
    if not text.isdigit() or int(text) >= MOST_CLASSES:
        raise ValueError(f"{shown(member.name)} in {file} is a class number below {MOST_CLASSES:,}: got {shown(text)}")
    return int(text)


def _by_class_files(found: list[Member], numbers: dict[tuple[int, str], int]) -> Arranged:
    given = [numbers.get((member.shard, _key(member.name))) for member in found]
    missing = sorted(member.name for member, number in zip(found, given, strict=True) if number is None)
    if missing:
        raise ValueError(f"each image has a class number beside it or none has: got none for {shown(missing[0])}")
    return by_numbers([member.name for member in found], given)


def _twice(member: Member, first: Path, second: Path) -> ValueError:
    return ValueError(f"images have names of their own: got {shown(member.name)} in {first} and {second}; repack them")


def _key(name: str) -> str:
    """webdataset's: the name up to the first dot after the last slash."""
    directory, slash, base = name.rpartition("/")
    return directory + slash + base.partition(".")[0]
