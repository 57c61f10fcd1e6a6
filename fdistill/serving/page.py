"""The page of a service: a prompt, and pictures while it is typed. It loads nothing from elsewhere."""

import secrets
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from fdistill.serving.generators import Generator

_TEMPLATES = Environment(loader=PackageLoader("fdistill.serving"), autoescape=True, undefined=StrictUndefined)


def page(generators: Sequence[Generator], limit: int) -> tuple[str, dict[str, str]]:
    """HTML and headers: only the script and the style that were sent with it work on it."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    )
    headers = {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    text = _TEMPLATES.get_template("page.html").render(generators=generators, limit=limit, nonce=nonce)
    return text, headers
