"""Answers of the routes that generate: sent whole or as events, for as long as the client is there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from pipelines.serve.errors import ApiError, naming_fields
from pipelines.serve.fields import GenerationFields
from pipelines.serve.service import Service
from pipelines.serve.sse import DONE, EventSource, EventStream, event, unless_client_leaves, with_error_event
from pipelines.serve.wire import JsonResponse


class Answer(Protocol):
    """The answer to one request, which has been queued; either `complete` or `events` is called, once."""

    async def complete(self) -> BaseModel:
        """Waits for the whole answer.

        Raises:
            ApiError: It failed.
        """

    def events(self) -> EventSource:
        """Yields the events of a stream.

        Raises:
            ApiError: It failed.
        """

    def close(self) -> None:
        """Cancels what is still running; it may be called several times."""


@dataclass(frozen=True)
class Framing:
    """The end of an API's streams. error_event: the event of a failure. end: the text behind the last event."""

    error_event: Callable[[ApiError], str]
    end: str


OPENAI = Framing(lambda error: event(error.body), DONE)
"""Framing of OpenAI's chat and text completions."""


async def respond(
    service: Service,
    request: Request,
    body: GenerationFields,
    starting: Coroutine[Any, Any, Answer],
    framing: Framing,
) -> Response:
    """Answers a request, whole or as a stream, for as long as the client is there.

    body: the request, whose fields an error may name. starting: queues it.

    Raises:
        ApiError: The request can't be served, or failed before anything was sent.
        ClientGoneError: The client left.
    """
    with naming_fields(type(body).model_fields):
        answer = await unless_client_leaves(request.receive, starting)
    if body.stream:
        events = with_error_event(answer.events(), framing.error_event, framing.end)
        return EventStream(events, answer.close, service.settings.send_timeout_s)
    return JsonResponse(await unless_client_leaves(request.receive, answer.complete()))
