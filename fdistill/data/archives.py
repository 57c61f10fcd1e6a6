"""What lies where in .tar and .zip files whose members are not compressed; nothing is extracted."""

import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fdistill.core.file_suffixes import ARCHIVES
from fdistill.core.weight_files import reason, shown
from fdistill.data.image_names import LABELS, Sieve, is_passed_over

CLASS = ".cls"  # webdataset's: the class number of the image of the same name
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".rar", ".7z")
_ENCRYPTED, _LOCAL_HEADER = 0x1, 30  # a flag; bytes before the name of a member of a .zip


class Member(NamedTuple):
    """An image, a class number, or dataset.json."""

    name: str
    shard: int
    offset: int
    size: int


def archives_in(folder: Path) -> list[Path]:
    """The .tar and .zip files of a folder, in the order of their names; the file itself where it is one.

    Raises:
        ValueError: It is a compressed archive, or holds one beside others.
    """
    if folder.is_file():
        files = [folder]
    else:
        files = [file for file in sorted(folder.glob("*")) if file.name[0] != "." and file.is_file()]
    found = [file for file in files if file.suffix.lower() in ARCHIVES]
    compressed = [file for file in files if file.name.lower().endswith(_COMPRESSED)]
    if compressed and (found or folder.is_file()):
        raise ValueError(
            f"archives of images are uncompressed .tar or .zip (zip -0): got {compressed[0]}; unpack it, or pack it"
            " again without compression"
        )
    return found


def members(shard: int, file: Path, sieve: Sieve) -> Iterator[Member]:
    """Images, class numbers and dataset.json of an archive.

    Raises:
        ValueError: It is compressed, truncated or damaged, or an image is a link or sparse.
    """
    kind, read = ("tar", _of_tar) if file.suffix.lower() == ".tar" else ("zip", _of_zip)
    size = file.stat().st_size
    try:
        for member in read(shard, file, sieve):
            if member.offset + member.size > size:
                raise ValueError(f"{shown(member.name)} is cut off")
            yield member
    except Exception as error:  # readers of broken archives raise anything: TarError, BadZipFile, struct.error, ...
        raise ValueError(
            f"{file} is a whole, uncompressed .{kind} of images: got an error ({reason(error)}); make or download it"
            " again"
        ) from error


def _of_tar(shard: int, file: Path, sieve: Sieve) -> Iterator[Member]:
    with tarfile.open(file, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all; typeshed leaves it out
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            name = None if member.isdir() else _checked_name(member.name, plain, sieve)
            if name is not None:
                yield Member(name, shard, member.offset_data, member.size)
        _check_end(file, archive.offset)


def _check_end(file: Path, offset: int) -> None:
    """Raise ValueError where no block of zeros ends an archive: tarfile takes a broken or cut header for the end."""
    with file.open("rb") as opened:
        opened.seek(offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"neither a header nor the mark of the end at byte {offset:,}")


def _of_zip(shard: int, file: Path, sieve: Sieve) -> Iterator[Member]:
    with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
            name = None if member.is_dir() else _checked_name(member.filename, plain, sieve)
            if name is None:
                continue
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                raise ValueError(f"{shown(name)} is compressed or encrypted: unpack it, or pack it again with zip -0")
            opened.seek(member.header_offset)
            header = opened.read(_LOCAL_HEADER)
            if header[:4] != b"PK\3\4":
                raise ValueError(f"there is no {shown(name)} where the directory says")
            names_end = _LOCAL_HEADER + sum(struct.unpack("<2H", header[26:]))
            yield Member(name, shard, member.header_offset + names_end, member.file_size)


def _checked_name(given: str, plain: bool, sieve: Sieve) -> str | None:
    """The name of an image, a class number or dataset.json; None for what is none of them."""
    path = PurePosixPath(given)
    *folders, last = inside = [part for part in path.parts if part not in ("..", "/")] or [""]
    if path.name == LABELS or path.suffix.lower() == CLASS:
        if last[0] == "." or any(is_passed_over(folder) for folder in folders):
            return None
    elif not sieve.is_image("/".join(inside)):
        return None
    if not plain:
        raise ValueError(f"{shown(given)} is a link or no regular file")
    return str(path)
