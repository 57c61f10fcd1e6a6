"""The pages of a service. They load nothing from elsewhere."""

import secrets
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(loader=PackageLoader("fdistill.serving"), autoescape=True, undefined=StrictUndefined)


def page(template: str, **shown: Any) -> HTMLResponse:
    """A filled template: only the script and the style that were sent with it work on it."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    )
    headers = {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(_TEMPLATES.get_template(template).render(shown, nonce=nonce), headers=headers)
