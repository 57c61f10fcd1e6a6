"""Images in uncompressed .tar files, read where they lie by an index of offsets: nothing is extracted."""

import io
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fdistill.data.image_files import SUFFIXES, Images, Listing, PackedNames, check_enough
from fdistill.weight_files import reason, shown

_CLASS = ".cls"  # webdataset's: the class number of the image of the same name
_MOST_CLASSES = 1_000_000


class TarImages(Images):
    """Images by shard, offset and size.

    Args:
        shards: the .tar files.
        names: of the images in them.
        places: [N, 3] int64: shard, offset and size in bytes.
    """

    def __init__(self, shards: list[Path], names: list[str], places: Tensor) -> None:
        self._shards, self._names, self._places = shards, PackedNames(names), places

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self._names[index]} in {self._shards[int(self._places[index, 0])]}"

    def told(self, index: int) -> tuple[str, int]:
        return self._names[index], int(self._places[index, 2])

    def open(self, index: int) -> BinaryIO:
        shard, offset, size = self._places[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


def tars_in(folder: Path) -> list[Path]:
    """The .tar files of a folder, in the order of their names."""
    return sorted(f for f in folder.glob("*.tar") if f.is_file() and f.name[0] != ".")


def list_tars(folder: Path) -> Listing:
    """Find the images in the .tar files of a folder; reads every header and, where there are any, class numbers.

    Classes are what an unpacked folder would have, the directories in the names; or NAME.cls beside each NAME.jpg holds
    a class number, as in webdataset. The order is that of the unpacked folder: by class directory, then by name.

    Raises:
        ValueError: A file is no uncompressed .tar or is truncated or damaged, an image is a link or sparse, a name
            leads out of the folder, two have the same, only some images have a class, or there are too few images.
    """
    shards = tars_in(folder)
    found: list[_Member] = []
    numbers: dict[tuple[int, str], int] = {}
    for shard, file in enumerate(tqdm(shards, desc="indexing", unit="tar", disable=len(shards) < 10)):
        for member in _members(shard, file):
            if member.name.endswith(_CLASS):
                if numbers.setdefault((shard, _key(member.name)), number := _class_number(file, member)) != number:
                    raise ValueError(f"an image has one class number: got two for {shown(member.name)} in {file}")
            else:
                found.append(member)
    check_enough(len(found), folder)
    if numbers:
        return _by_number(shards, found, numbers)
    order = sorted(found, key=lambda member: (_directory(member.name), member.name))
    for one, other in pairwise(order):
        if one.name == other.name:  # unpacked, the later one would replace the earlier
            raise _twice(one, shards[one.shard], shards[other.shard])
    names = sorted({_directory(member.name) for member in order})
    if "" in names and len(names) > 1:
        raise ValueError(f"images in .tar files lie all in class directories or none: got both in {folder}; repack it")
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of[_directory(member.name)] for member in order]
    return Listing(_images(shards, order), torch.tensor(labels), [name for name in names if name])


class _Member(NamedTuple):
    name: str
    shard: int
    offset: int
    size: int


def _members(shard: int, file: Path) -> Iterator[_Member]:
    """Images and class numbers of one .tar file."""
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # it would keep them all
                if member.size < 0:  # it would go back, and never end
                    raise ValueError("a size below 0")
                name = _checked_name(member, file)
                if name is None:
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(f"{shown(name)} is cut off")
                yield _Member(name, shard, member.offset_data, member.size)
            _check_end(file, archive.offset)
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{file} is a whole, uncompressed .tar of images: got an error ({reason(error)}); make or download it again"
        ) from error


def _check_end(file: Path, offset: int) -> None:
    """Raise ValueError where no block of zeros ends an archive: tarfile takes a broken or cut header for the end."""
    with file.open("rb") as opened:
        opened.seek(offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"neither a header nor the mark of the end at byte {offset:,}")


def _checked_name(member: tarfile.TarInfo, file: Path) -> str | None:
    """The name of an image or a class number; None for what is neither."""
    path = PurePosixPath(member.name)
    hidden = any(part[0] == "." and part != ".." for part in path.parts)
    if path.suffix.lower() not in (*SUFFIXES, _CLASS) or hidden or member.isdir():
        return None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise ValueError(f"{shown(member.name)} is a link or no regular file")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the name {shown(member.name)} leads out of the folder")
    return str(path)


def _class_number(file: Path, member: _Member) -> int:
    with file.open("rb") as opened:
        opened.seek(member.offset)
        text = opened.read(min(member.size, 32)).decode("ascii", "replace").strip()
    if not text.isdigit() or int(text) >= _MOST_CLASSES:
        raise ValueError(f"{shown(member.name)} in {file} is a class number below {_MOST_CLASSES:,}: got {shown(text)}")
    return int(text)


def _by_number(shards: list[Path], found: list[_Member], numbers: dict[tuple[int, str], int]) -> Listing:
    order = sorted(found, key=lambda member: member.name)  # archives may hold the same name: numbers are beside them
    for one, other in pairwise(order):
        if (one.name, one.shard) == (other.name, other.shard):
            raise _twice(one, shards[one.shard], shards[other.shard])
    missing = [member.name for member in order if (member.shard, _key(member.name)) not in numbers]
    if missing:
        raise ValueError(f"each image has a class number beside it or none has: got none for {shown(missing[0])}")
    labels = torch.tensor([numbers[member.shard, _key(member.name)] for member in order])
    return Listing(_images(shards, order), labels, [str(number) for number in range(int(labels.max()) + 1)])


def _twice(member: _Member, first: Path, second: Path) -> ValueError:
    return ValueError(f"images have names of their own: got {shown(member.name)} in {first} and {second}; repack them")


def _images(shards: list[Path], members: list[_Member]) -> TarImages:
    return TarImages(shards, [member.name for member in members], torch.tensor([member[1:] for member in members]))


def _directory(name: str) -> str:
    return name.rpartition("/")[0]


def _key(name: str) -> str:
    """webdataset's: the name up to the first dot after the last slash."""
    directory, slash, base = name.rpartition("/")
    return directory + slash + base.partition(".")[0]
