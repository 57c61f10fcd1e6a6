"""Requests for images as OpenAI's API writes them, checked before anything waits, and the bytes of the answer."""

import base64
import io
import json
import secrets
import struct
import time
import zlib
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fdistill.sampling.pictures import show, to_pixels

LARGEST_SEED = 2**63 - 1
_HOW: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 95}}
_UP = 2  # the filter of a PNG's row: what the row above had is subtracted
_DRAWN_BELOW = 2**31  # seeds that nobody gave: a script reads them exactly
_REMEDIES = {
    "extra_forbidden": "is not honoured here: leave it out",
    "missing": "is missing: give one",
}


class RequestError(Exception):
    """A request that is answered by one line and a status."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.retry_after = message, param, status, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer."""
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}

    def as_json(self) -> dict[str, Any]:
        """The error as OpenAI's API writes it."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else None
        kind = kind or ("authentication_error" if self.status == 401 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Request(BaseModel):
    """The fields of OpenAI's image generation that are honoured, and the seed; null is as good as absent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None

    @classmethod
    def read(cls, body: bytes | dict[str, Any]) -> "Request":
        """Of a JSON body, or of named values.

        Raises:
            RequestError: with the name of the field that is wrong.
        """
        try:
            return cls.model_validate_json(body) if isinstance(body, bytes) else cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            param = ".".join(map(str, first["loc"])) or None
            if param is None:
                raise RequestError(f"the body is one object of JSON: {first['msg']}") from error
            said = _REMEDIES.get(first["type"])
            said = said or f"is refused: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r:.60}"
            raise RequestError(f"{param} {said}", param) from error

    def checked(self, side: str, limit: int) -> tuple[int, int]:
        """How many images and of which seed; one is drawn where none is given.

        Args:
            side: of the generator's images, as 8x8.
            limit: images of one request.

        Raises:
            RequestError: for another size, or too many images.
        """
        if self.size not in (None, "auto", side):
            raise RequestError(f"size is {side}, that of this generator: got {self.size[:60]!r}", "size")
        n = 1 if self.n is None else self.n
        if n > limit:
            raise RequestError(f"n is at most {limit} images of one request: got {n}", "n")
        return n, secrets.randbelow(_DRAWN_BELOW) if self.seed is None else self.seed


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


def as_json(images: Tensor, request: Request, model: str, side: str, seed: int) -> bytes:
    """The body of the answer to a request for images."""
    kind = request.output_format or "png"
    about = {"created": int(time.time()), "model": model, "seed": seed, "size": side, "output_format": kind}
    data = [b'{"b64_json": "%b"}' % base64.b64encode(file) for file in encoded(images, kind)]  # needs no escapes
    return b'%b, "data": [%b]}' % (json.dumps(about).encode()[:-1], b", ".join(data))


def as_picture(images: Tensor) -> bytes:
    """One PNG of all images in a grid."""
    buffer = io.BytesIO()
    show(images).save(buffer, "png")
    return buffer.getvalue()
