"""The access log: a line for every request, with its tokens and times where the engine computed it, and no text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

from pipelines.context import TextChunk, TextContext
from pipelines.serve.errors import ApiError
from pipelines.serve.generation import Generation

access_log = logging.getLogger("pipelines.serve.access")

POLLED_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Paths that machines ask every few seconds: their lines are for debugging, unless they say that something is wrong."""

_noted: ContextVar[list[Generation]] = ContextVar("noted")
"""The generations of the request that the task serves."""


class GenerationNotes:
    """Observes a service: notes each generation for the request that begins it."""

    def on_submit(self, generation: Generation) -> None:
        """Notes a generation."""
        if (noted := _noted.get(None)) is not None:
            noted.append(generation)

    def on_chunk(self, context: TextContext, chunk: TextChunk) -> None:
        """Does nothing."""

    def on_refusal(self, error: ApiError) -> None:
        """Does nothing."""


@contextmanager
def noting_generations() -> Iterator[Sequence[Generation]]:
    """Gives the generations that begin in the block, and in tasks that it starts, as GenerationNotes sees them."""
    noted: list[Generation] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def log_request(scope: Scope, status: int, seconds: float, generations: Sequence[Generation]) -> None:
    """Writes a request's line; its fields are attributes of the record too.

    status: 0 if the client left before an answer began. seconds: until the whole answer was sent.
    """
    work = _work(generations) if generations else {}
    fields = {
        "method": scope["method"],
        "path": scope["path"][:200].encode("ascii", "backslashreplace").decode(),
        "status": status,
        "seconds": round(seconds, 6),
        "request_id": scope["state"]["request_id"],
        **work,
    }
    shown = "".join(f" {name}={_shown(value)}" for name, value in work.items())
    text = "%(method)s %(path)r %(status)d %(seconds).3fs%(work)s %(request_id)s"
    level = logging.DEBUG if scope["path"] in POLLED_PATHS and status == 200 else logging.INFO
    access_log.log(level, text, {**fields, "work": shown}, extra=fields)


def _work(generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens, times and ends of a request's sequences; a prompt with several choices counts once.

    queue_s, first_token_s: of the sequence that was first; absent if none came so far.
    """
    prompts = [context for each in generations for context in each.contexts[:: each.num_choices]]
    sequences = [(each.arrived, context) for each in generations for context in each.contexts]
    times = {
        "queue_s": [context.times.queue_s for _, context in sequences if context.times.queue_s is not None],
        "first_token_s": [
            context.times.first_token - arrived
            for arrived, context in sequences
            if context.times.first_token is not None
        ],
    }
    # Sequences whose client has left end a moment after its request.
    reasons = Counter(context.finish_reason or "cancelled" for _, context in sequences)
    return {
        "prompt_tokens": sum(context.num_prompt_tokens for context in prompts),
        "cached_tokens": sum(context.num_cached_tokens or 0 for context in prompts),
        "output_tokens": sum(context.num_output_tokens for _, context in sequences),
        **{name: round(min(seconds), 6) for name, seconds in times.items() if seconds},
        "finish_reasons": dict(sorted(reasons.items())),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{count}" for name, count in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)
