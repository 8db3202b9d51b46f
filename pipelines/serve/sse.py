"""Answers that go on while the client is there: event streams, and work that ends when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipelines.serve.errors import ApiError, ClientGoneError
from pipelines.serve.wire import to_json

DONE = "data: [DONE]\n\n"
"""The last event of a stream of OpenAI's APIs."""

STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events of chunks, the last of which is [DONE].",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""Entry of /openapi.json for routes that can stream."""

_log = logging.getLogger("pipelines.serve.error")
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_Result = TypeVar("_Result")
EventSource = AsyncGenerator[str, None]
"""Texts of the events of a stream."""


def event(model: BaseModel, name: str | None = None) -> str:
    """A server-sent event; name: its type, which OpenAI's older APIs have none of."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {to_json(model)}\n\n"


async def with_error_event(events: EventSource, error_event: Callable[[ApiError], str], end: str) -> EventSource:
    """The events of a stream and its end; an error becomes an event before it."""
    async with aclosing(events):
        try:
            async for each in events:
                yield each
        except ApiError as error:
            yield error_event(error)
        except Exception:
            _log.exception("a stream failed")
            yield error_event(ApiError(500, "The server failed; its log has the reason.", code="internal_error"))
        if end:
            yield end


class EventStream(Response):
    """A stream of events. It ends when the client leaves, or takes none for `send_timeout_s`.

    close: is called at its end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: EventSource, close: Callable[[], None], send_timeout_s: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close, self._send_timeout_s = events, close, send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await unless_client_leaves(receive, self._send_all(send))
        except (ClientGoneError, TimeoutError):  # the client has left, or is as good as gone
            return
        finally:
            self._close()  # a generator that was never begun does not do it

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in self._events:
                async with asyncio.timeout(self._send_timeout_s):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Waits for some work, and cancels it when the client closes the connection.

    Raises:
        ClientGoneError: It did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
