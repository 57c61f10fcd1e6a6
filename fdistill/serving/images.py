"""The bytes of an answer: pictures as files, and the JSON around them."""

import base64
import io
import json
import struct
import time
import zlib
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fdistill.sampling.pictures import show, to_pixels

_HOW: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 95}}
_UP = 2  # the filter of a PNG's row: what the row above had is subtracted


def encoded(images: Tensor, kind: str) -> list[bytes]:
    """Each of images [n, C, H, W] in [-1, 1] as a file of that kind; webp without loss, jpeg at quality 95."""
    pixels = to_pixels(images)
    if kind == "png":
        return _png(pixels)
    files = []
    for each in pixels.squeeze(-1) if pixels.shape[3] == 1 else pixels:
        buffer = io.BytesIO()
        Image.fromarray(each).save(buffer, kind, **_HOW[kind])
        files.append(buffer.getvalue())
    return files


def _png(pixels: np.ndarray) -> list[bytes]:
    """Each of uint8 [n, H, W, 1 or 3] as a PNG (RFC 2083) of one filter, and of runs by Huffman's code alone.

    Pillow chooses a filter for each row and searches for repetitions, which pictures hardly have: it takes two to three
    times as long, for files as large (docs/service.md).
    """
    n, height, width, channels = pixels.shape
    rows = np.empty((n, height, 1 + width * channels), np.uint8)
    rows[:, :, 0], rows[:, :, 1:] = _UP, pixels.reshape(n, height, -1)
    rows[:, 1:, 1:] -= rows[:, :-1, 1:].copy()
    about = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    begin, end = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", about), _chunk(b"IEND", b"")
    files = []
    for each in rows:
        packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
        files.append(begin + _chunk(b"IDAT", packer.compress(each) + packer.flush()) + end)
    return files


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def as_json(images: Tensor, kind: str, model: str, seed: int) -> bytes:
    """The body of the answer to a request for images [n, C, H, W], as files of that kind."""
    side = f"{images.shape[3]}x{images.shape[2]}"
    about = {"created": int(time.time()), "model": model, "seed": seed, "size": side, "output_format": kind}
    data = [b'{"b64_json": "%b"}' % base64.b64encode(file) for file in encoded(images, kind)]  # needs no escapes
    return b'%b, "data": [%b]}' % (json.dumps(about).encode()[:-1], b", ".join(data))


def as_picture(images: Tensor) -> bytes:
    """One PNG of all images in a grid."""
    buffer = io.BytesIO()
    show(images).save(buffer, "png")
    return buffer.getvalue()
