"""The answer of /v1/responses: whole, or as events."""

from __future__ import annotations

import time
from typing import Any

from pipelines.serve.blocks import AnswerBlocks
from pipelines.serve.chat.turn import ChatTurn
from pipelines.serve.responses.events import EventLog
from pipelines.serve.responses.fields import ResponsesRequest
from pipelines.serve.responses.output import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from pipelines.serve.responses.repeated import repeated_fields
from pipelines.serve.responses.writer import ItemWriter, new_id
from pipelines.serve.sse import EventSource
from pipelines.serve.token_texts import TokenTexts


class ResponseAnswer:
    """The answer to one request; either `complete` or `events` is called, once.

    body: the request. model: its name. log: writes the events.
    """

    def __init__(self, turn: ChatTurn, body: ResponsesRequest, model: str, texts: TokenTexts, log: EventLog) -> None:
        self.close = turn.generation.close
        self._turn, self._log = turn, log
        self._blocks = AnswerBlocks()
        self._writer = ItemWriter(log, texts if body.has_logprobs else None)
        self._head: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **repeated_fields(body, turn.generation.contexts[0].params),
        }

    async def complete(self) -> ResponseObject:
        """Waits for the whole answer.

        Raises:
            ApiError: It failed.
        """
        async for step in self._turn:
            self._blocks.take(step)
        return self._ended()

    async def events(self) -> EventSource:
        """Yields the events of a stream.

        Raises:
            ApiError: The answer failed.
        """
        self._log.failed = self._failed
        for name in ("response.created", "response.in_progress"):
            yield self._log.write(name, response=self._response(status="in_progress"))
        async for step in self._turn:
            for change in self._blocks.take(step):
                for each in self._writer.events(change):
                    yield each
        response = self._ended()
        yield self._log.write(f"response.{response.status}", response=response)

    def _ended(self) -> ResponseObject:
        """The response at its end."""
        if self._blocks.blocks[-1].is_cut:
            details = IncompleteDetails(reason="max_output_tokens")
            return self._response(status="incomplete", incomplete_details=details, usage=self._usage)
        return self._response(status="completed", completed_at=int(time.time()), usage=self._usage)

    def _failed(self, error: ResponseError) -> ResponseObject:
        """The response after a failure, with what there is of its items."""
        return self._response(status="failed", error=error, usage=self._usage)

    def _response(self, **fields: Any) -> ResponseObject:
        blocks = self._blocks.blocks
        is_whole = [block is not blocks[-1] or fields["status"] == "completed" for block in blocks]
        output = [
            self._writer.item(block, "completed" if whole else "incomplete")
            for block, whole in zip(blocks, is_whole, strict=True)
        ]
        open_fields = dict.fromkeys(("completed_at", "error", "incomplete_details", "usage"))
        return ResponseObject(**{**self._head, **open_fields, "output": output, **fields})

    @property
    def _usage(self) -> ResponseUsage:
        usage = self._turn.usage
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens, cache_write_tokens=0
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._blocks.num_reasoning_tokens),
            total_tokens=usage.total_tokens,
        )
