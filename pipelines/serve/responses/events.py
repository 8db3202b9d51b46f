"""The events of a streamed response, and the numbers that they bear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.serve.errors import ApiError, ErrorDetail
from pipelines.serve.fields import ApiModel
from pipelines.serve.log_probs import ChatTokenLogProb
from pipelines.serve.responses.output import OutputItem, ReasoningPart, ResponseError, ResponseObject, TextPart
from pipelines.serve.sse import event

STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with `stream`, server-sent events, the last of which is response.completed, "
        "response.incomplete or response.failed.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""Entry of /openapi.json for the route."""


class ResponseEvent(ApiModel):
    """An event of a stream, with the fields of its type.

    sequence_number: counted from 0. output_index: of the item. content_index: of a part in it, always 0. text,
    arguments, part, item: as they are in the end. error, code, message, param: of a failure.
    """

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    item_id: str | None = None
    content_index: int | None = None
    item: OutputItem | None = None
    part: TextPart | ReasoningPart | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[ChatTokenLogProb] | None = None
    name: str | None = None
    arguments: str | None = None
    error: ErrorDetail | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


class EventLog:
    """Writes the events of one stream, and its end where it fails.

    failed: makes the response as it is after a failure; None: it has not begun.
    """

    def __init__(self) -> None:
        self.failed: Callable[[ResponseError], ResponseObject] | None = None
        self._num_events = 0

    def write(self, type: str, **fields: Any) -> str:
        """Writes an event."""
        written = ResponseEvent(type=type, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return event(written, type)

    def failure(self, error: ApiError) -> str:
        """Writes the events of a failure: one for clients that raise an exception, one that ends the response."""
        detail = error.body.error
        events = self.write("error", error=detail, code=detail.code, message=detail.message, param=detail.param)
        if self.failed is not None:
            reason = "server_error" if error.status_code >= 500 else "invalid_prompt"
            events += self.write(
                "response.failed", response=self.failed(ResponseError(code=reason, message=error.message))
            )
        return events
