"""Steps of every request: its id and its line in the log, the API key, the limit of its body."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import uuid
from collections.abc import Collection
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.access_log import log_request, noting_generations
from pipelines.serve.anthropic.errors import has_anthropic_errors
from pipelines.serve.error_answers import error_answer
from pipelines.serve.errors import ApiError, ClientGoneError

OPEN_PATHS = frozenset({"/health", "/ready", "/", "/favicon.ico"})
"""Paths that need no API key: what a load balancer asks for, and the chat page, whose requests need it themselves."""

LINGER_S = 5.0
"""Time for a client to send the rest of a body that is refused, and read the answer."""
LINGER_BYTES = 2**28
"""The most of such a body that is taken."""

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
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if has_anthropic_errors(scope):  # whose clients look for another header
                    headers["Request-Id"] = request_id
            await send(message)

        with noting_generations() as generations:
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                error_log.exception("request %s failed", request_id)
                if not status:
                    failure = ApiError(500, "The server failed; its log has the reason.", code="internal_error")
                    await error_answer(failure, scope)(scope, receive, send_with_id)
            finally:
                log_request(scope, status, time.perf_counter() - start, generations)


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
            "The API key is missing or wrong: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_answer(error, scope)(scope, receive, _Lingering(send, receive))

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        is_token = secrets.compare_digest(token.strip().encode(), self._key) and scheme.lower() == "bearer"
        is_key = secrets.compare_digest(headers.get("x-api-key", "").encode(), self._key)
        return is_token or is_key


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
            await error_answer(error, scope)(scope, receive, _Lingering(send, receive))
        except TimeoutError:
            late = ApiError(408, f"The body did not arrive within {self._timeout_s:g} s.", code="body_timeout")
            await error_answer(late, scope)(scope, receive, send)
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


class _Lingering:
    """Sends an answer before its request has ended, and takes what the client still sends before the answer ends.

    A connection that is closed while data comes is reset, and the client would not see the answer.
    """

    def __init__(self, send: Send, receive: Receive) -> None:
        self._send, self._receive = send, receive

    async def __call__(self, message: Message) -> None:
        is_last = message["type"] == "http.response.body"
        await self._send({**message, "more_body": True} if is_last else message)
        if is_last:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._drain()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drain(self) -> None:
        num_bytes, has_more = 0, True
        while has_more and num_bytes <= LINGER_BYTES:
            message = await self._receive()
            has_more = message.get("more_body", False)  # absent once the client has left
            num_bytes += len(message.get("body", b""))


class _Replay:
    """A body that has been read, as one message; then what the server says next, which is that the client has left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        return await self._receive() if body is None else {"type": "http.request", "body": body, "more_body": False}
