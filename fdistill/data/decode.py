"""One image file as pixels of a square: what is converted, how, and what is refused because it would lose something."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from fdistill.core.file_suffixes import IMAGE_FORMATS
from fdistill.core.weight_files import is_lfs_pointer, reason, shown

_ANY_NAME = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what such names hold in fact; PIL runs a program for some others
_EXACT = ("1", "L", "P", "RGB", "RGBX")  # modes that become grey or colours of 8 bits without a choice
_SIXTEEN_BITS = re.compile(r";16[BLN]")  # in what PIL calls the raw mode; BGR;16 is one of 5 and 6 bits
_WHITE = (255, 255, 255, 255)


class UnreadableImage(ValueError):
    """An image that cannot be used; the message is one line, also when a worker process of a DataLoader raised it."""

    def __init__(self, message: str) -> None:
        """Args:
        message: the line; or a worker's traceback, whose last line is the error with its class.
        """
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.UnreadableImage: "))


def read_image(
    source: Path | BinaryIO, resolution: int, channels: int, name: str | None = None, suffix: str | None = None
) -> Tensor:
    """Decode one image, crop it to the central square and resize it: uint8 [channels, resolution, resolution].

    It is turned upright by its EXIF tag; of several frames or pages the first is taken. Transparency is laid on white.
    CMYK becomes RGB as PIL computes it, and colour profiles are not applied. The last three are warned of once.

    Args:
        source: a file, or its bytes.
        resolution: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        name: for messages, where source is not a path.
        suffix: of its file, where name does not end with it: TIFF and PPM are opened only where it tells them.

    Raises:
        UnreadableImage: The file is broken, truncated, no image, or has more than 8 bits per channel or other channels
            than grey or colours.
    """
    name = str(source) if name is None else name
    image = _decoded(source, name, (PurePath(name).suffix if suffix is None else suffix).lower())
    image = _opaque(image, shown(name)).convert("RGB" if channels == 3 else "L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.view(resolution, resolution, channels).permute(2, 0, 1)


def own_shape(source: BinaryIO, name: str, suffix: str) -> tuple[int, int, int]:
    """Of an image as `read_image` leaves it at its own size, by its header: (1 or 3 channels, side, side).

    Raises:
        UnreadableImage: There is no image.
    """
    with _opened(source, name, suffix.lower()) as image:
        grey = image.mode in ("1", "L", "LA")
        return (1 if grey else 3, min(image.size), min(image.size))


@contextlib.contextmanager
def _opened(source: Path | BinaryIO, name: str, suffix: str) -> Iterator[ImageFile]:
    """The image, for as long as its file is open; whatever its decoder raises is one line."""
    formats = dict.fromkeys((*_ANY_NAME, IMAGE_FORMATS.get(suffix, "PNG")))
    try:
        with Image.open(source, formats=tuple(formats)) as image:
            yield image
    except UnreadableImage:
        raise
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, zlib.error, ...
        what = reason(error)
        if isinstance(error, UnidentifiedImageError):
            what = "a Git LFS pointer: git lfs pull" if _is_pointer(source) else "no image"
        raise UnreadableImage(
            f"an image file is readable: cannot decode {shown(name)} ({what}); repair or remove it"
        ) from error


def _decoded(source: Path | BinaryIO, name: str, suffix: str) -> Image.Image:
    with _opened(source, name, suffix) as opened:
        _check_depth(opened, name)
        if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:  # cameras add previews to an MPO
            warnings.warn("of animated images and files of several pages the first is taken", stacklevel=3)
        image = ImageOps.exif_transpose(opened)
        image.load()
        return image


def _check_depth(image: ImageFile, name: str) -> None:
    """PIL keeps the high byte of 16 bits of colour in silence, and clips 16 bits of grey where they are converted."""
    found = f"mode {image.mode}" if image.mode.startswith(("I", "F")) else ""
    for tile in image.tile:
        raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        deep = isinstance(raw, str) and _SIXTEEN_BITS.search(raw)
        largest = max((each for each in (raw, *more) if isinstance(each, int)), default=0)
        if deep or (image.format == "PPM" and largest > 255):
            found = found or f"16 bits that become mode {image.mode}"
    if found:
        raise UnreadableImage(f"images have 8 bits per channel: got {found} in {shown(name)}; convert it to 8 bits")


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """The image without transparency, of a mode that converts to grey or colours."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        bands = cast("tuple[tuple[int, int], ...]", image.getextrema())
        if bands[3][0] < 255:
            warnings.warn("transparent images are laid on white; flatten them for another background", stacklevel=3)
            image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
        return image.convert("RGB")
    if image.mode in ("CMYK", "YCbCr"):
        if image.mode == "CMYK":
            warnings.warn("CMYK images become RGB without their colour profiles; convert them for others", stacklevel=3)
        return image.convert("RGB")
    if image.mode not in _EXACT:
        raise UnreadableImage(f"images are grey or RGB: got mode {image.mode} in {name}; convert it to RGB")
    return image


def _is_pointer(source: Path | BinaryIO) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return is_lfs_pointer(file.read(64))
    source.seek(0)
    return is_lfs_pointer(source.read(64))
