"""Steps of every request: its id and its line in the log, the API key, the limit of its body."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.errors import ApiError, ClientGoneError

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no API key: those that a load balancer asks for."""

access_log = logging.getLogger("pipelines.serve.access")
error_log = logging.getLogger("pipelines.serve.error")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives every request an id, the client's own where it sent one, and writes a line about it to the access log.

    A defect of ours becomes an answer of status 500, if no answer has begun.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            error_log.exception("request %s failed", request_id)
            if not status:
                failure = ApiError(500, "The server failed; its log has the reason.", code="internal_error")
                await failure.response(scope, receive, send_with_id)
        finally:
            _log_access(scope, status, time.perf_counter() - start)


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    """Writes a request's line; its fields are attributes of the record too."""
    fields = {
        "method": scope["method"],
        "path": scope["path"][:200].encode("ascii", "backslashreplace").decode(),
        "status": status,
        "seconds": round(seconds, 6),
        "request_id": scope["state"]["request_id"],
    }
    access_log.info("%(method)s %(path)r %(status)d %(seconds).3fs %(request_id)s", fields, extra=fields)


class ApiKey:
    """Refuses requests without the key, which comes as `Authorization: Bearer` or as `x-api-key`."""

    def __init__(self, app: ASGIApp, api_key: str, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app, self._key, self._open_paths = app, api_key.encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return secrets.compare_digest(given.encode(), self._key)


class BodyLimit:
    """Reads bodies before anything else does, within a size and a time."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(int(Headers(scope=scope).get("content-length", 0)))
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
        except ApiError as error:
            await error.response(scope, receive, send)
        except TimeoutError:
            late = ApiError(408, f"The body did not arrive within {self._timeout_s:g} s.", code="body_timeout")
            await late.response(scope, receive, send)
        except ClientGoneError:
            return
        else:
            await self._app(scope, _Replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        body, has_more = bytearray(), True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
            self._check(len(body))
        return bytes(body)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            message = f"The body is larger than {self._max_bytes} bytes (--max-request-bytes)."
            raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


class _Replay:
    """A body that has been read, as one message; then what the server says next, which is that the client has left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        return await self._receive() if body is None else {"type": "http.request", "body": body, "more_body": False}
