"""GET /: the chat page, one HTML file that talks to this server alone."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from pipelines.serve.service import Service

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def read_page() -> str:
    """The page's HTML."""
    return files("pipelines.serve").joinpath("page.html").read_text("utf-8")


def security_headers(page: str) -> dict[str, str]:
    """Headers that bind a page to its own script and style, to this server, and to a window of its own."""
    hashes = {kind: _hash(content) for kind, content in _INLINE.findall(page)}
    policy = (
        "default-src 'none'",
        f"script-src {hashes['script']}",
        f"style-src {hashes['style']}",
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text that becomes markup, as by innerHTML, is an error
        "trusted-types 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(include_in_schema=False)
    page = read_page()
    headers = security_headers(page)

    @router.get("/")
    async def get_page() -> Response:
        """The chat page."""
        return HTMLResponse(page, headers=headers)

    @router.get("/favicon.ico")
    async def get_icon() -> Response:
        """Nothing: the page has its icon in itself, and browsers ask anyway."""
        return Response(status_code=204)

    return router
