"""Who may ask: a bearer token on everything but the two probes, and on this machine alone without one."""

import base64
import hmac
import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fdistill.serving.request import RequestError

PROBES = ("/healthz", "/readyz")
_SHORTEST = 16  # letters of a token


def read_token(file: str | None) -> str | None:
    """The token in a file; None where no file is given.

    Raises:
        ValueError: for a token that is short, or more than one word.
    """
    if file is None:
        return None
    token = Path(file).read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise ValueError(
            f"{file} holds one token of at least {_SHORTEST} ASCII letters without blanks: got {len(token)}; make one "
            "by python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests without the token; without a token, those that name another host than this machine.

    The token comes as a bearer token, or as the password of Basic authentication, which a browser asks for by itself.
    The host is asked for because a page of somebody else may let its own name lead to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error: RequestError | None = None
        told: dict[str, str] = {}
        if self.token is None:
            if not is_loopback(_host(headers.get("host", ""))):
                error = RequestError(
                    "without a token only this machine is served, as 127.0.0.1 or localhost", status=403
                )
        elif not hmac.compare_digest(_given(headers.get("authorization", "")), self.token.encode()):
            said = "this service wants its token: Authorization: Bearer TOKEN"
            error = RequestError(said, status=401, code="invalid_api_key")
            told = {"WWW-Authenticate": 'Basic realm="fdistill: any name, the token as password"'}
        if error is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse(error.as_json(), error.status, told)(scope, receive, send)


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _given(authorization: str) -> bytes:
    """The token that came with a request; empty for none."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:  # binascii.Error for one
            return b""
    return b""
