"""Requests for images as OpenAI's API writes them, and what is answered where one is wrong."""

import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LARGEST_SEED = 2**63 - 1
GRID = "grid"  # one PNG of all pictures, in place of a file for each
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
        super().__init__(message, param, status, code, retry_after)  # so that it can be pickled
        self.message, self.param, self.status, self.code, self.retry_after = message, param, status, code, retry_after

    def __str__(self) -> str:
        return self.message

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

    def checked(self, limit: int) -> tuple[int, int]:
        """How many images and of which seed; one is drawn where none is given.

        Args:
            limit: images of one request.

        Raises:
            RequestError: for too many images.
        """
        n = 1 if self.n is None else self.n
        if n > limit:
            raise RequestError(f"n is at most {limit} images of one request: got {n}", "n")
        return n, secrets.randbelow(_DRAWN_BELOW) if self.seed is None else self.seed
