"""The output of one API request, on the side of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.consumers import NextToken
from pipelines.serve.errors import ApiError, of_engine_error, unavailable


class Generation:
    """The chunks of all sequences of an API request, as the engine generates them.

    It is iterated once and yields (index of the context, chunk). A sequence that fails ends the iteration with an
    ApiError, and the others are cancelled; so does `close`, which whoever holds a generation calls at the end.

    contexts: of the sequences: for each prompt `num_choices` of them. cancel: ends one of them in the engine, for a
    reason. arrived: when the request came, by `time.monotonic`.
    """

    def __init__(
        self,
        contexts: Sequence[TextContext],
        cancel: Callable[[TextContext, FinishReason], None],
        num_choices: int = 1,
        arrived: float | None = None,
    ) -> None:
        self.contexts, self._cancel, self.num_choices = contexts, cancel, num_choices
        self.arrived = time.monotonic() if arrived is None else arrived
        self._open = set(range(len(contexts)))
        self._ended: set[int] = set()  # by `end`
        self._items: asyncio.Queue[tuple[int, TextChunk] | ApiError] = asyncio.Queue()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    def expire_at(self, deadline: float, error: ApiError) -> None:
        """Ends the generation with an error at a time of the loop's clock."""
        self._timer = asyncio.get_running_loop().call_at(deadline, self.fail, error)

    def push(self, index: int, chunk: TextChunk) -> None:
        """Takes a chunk from the engine; after `close` nobody reads it."""
        if chunk.finish_reason is not None:
            self._open.discard(index)
        if not self._is_closed:
            self._items.put_nowait((index, chunk))

    def fail(self, error: ApiError) -> None:
        """Ends the iteration with an error, after what has been generated."""
        self._items.put_nowait(error)
        self.close()

    def end(self, index: int) -> None:
        """Ends one sequence, whose answer is complete: what it generates from now on is dropped."""
        self._ended.add(index)
        if index in self._open:
            self._open.discard(index)
            self._cancel(self.contexts[index], "stop")

    def close(self) -> None:
        """Cancels what is still running; it may be called several times."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for index in self._open:
            self._cancel(self.contexts[index], "cancelled")
        self._open.clear()

    async def __aiter__(self) -> AsyncIterator[tuple[int, TextChunk]]:
        """Yields the chunks until all sequences have ended."""
        running = set(range(len(self.contexts)))
        try:
            while running - self._ended:
                item = await self._items.get()
                if isinstance(item, ApiError):
                    raise item
                index, chunk = item
                if index in self._ended:
                    continue
                _raise_failure(chunk)
                if chunk.finish_reason is not None:
                    running.discard(index)
                yield item
        finally:
            self.close()


def _raise_failure(chunk: TextChunk) -> None:
    if chunk.finish_reason == "error":
        raise of_engine_error(chunk.error)
    if chunk.finish_reason == "cancelled":  # not by `close`, after which nobody reads
        raise unavailable("The server is shutting down: the answer was cut.")


def stop_reason(context: TextContext) -> str | int | None:
    """The stop string or stop token that ended a sequence; None where something else did."""
    if context.finish_reason != "stop":
        return None
    if isinstance(context.consumer, NextToken) and context.consumer.stops.matched is not None:
        return context.consumer.stops.matched
    last = context.tokens[-1]
    return last if last in context.params.stop_token_ids else None
