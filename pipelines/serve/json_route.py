"""Routes whose JSON bodies are parsed within bounds of depth and number of values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from pipelines.serve.errors import bad_request

MAX_VALUES = 1_000_000
"""The most values of a body: parsing takes tenths of a second for as many, in which nothing else is served."""

LARGE_BYTES = 16 * 2**10
"""Bodies from this size on take turns: a thousand messages take 15 ms to be checked."""


def parse_json(body: bytes) -> Any:
    """Parses a body; pydantic's parser ends at a depth of 200.

    Raises:
        ApiError: It is no JSON, too deep, or has too many values.
    """
    if body.count(b",") > MAX_VALUES:
        raise bad_request(f"The body has too many values: at most {MAX_VALUES} are allowed.", code="body_too_complex")
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        is_deep = "recursion" in str(error)
        reason = str(error).replace("recursion limit exceeded", "it is nested too deep, more than 200 levels")
        code = "body_too_complex" if is_deep else "invalid_json"
        raise bad_request(f"The body can't be read as JSON: {reason}.", code=code) from None


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BYTES:
            return parse_json(body)
        turn: asyncio.Lock = self.app.state.large_bodies
        async with turn:
            await asyncio.sleep(0)  # others are served before this body is parsed, and checked by FastAPI
            return parse_json(body)


class JsonRoute(APIRoute):
    """A route that parses its body by `parse_json`, of large ones one in a pass of the event loop.

    The application's `state.large_bodies` is the lock by which they take turns.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json
