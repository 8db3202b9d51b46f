"""What the chunks of a streamed answer say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.benchmark.outcome import Outcome, RequestError

DONE = "[DONE]"
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


def take_event(data: str, now_s: float, outcome: Outcome) -> None:
    """Adds what an event says to the outcome of its request.

    Raises:
        RequestError: The event is no chunk, or an error of the server.
    """
    if data.strip() == DONE:
        outcome.has_ended = True
        return
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise RequestError("error event", message_of(chunk) or data)
        _take_chunk(chunk, now_s, outcome)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RequestError("bad event", f"an event of the stream is no chunk: {data[:100]!r}") from None


def message_of(body: Any) -> str:
    """The message in the body of an error, in the shapes that servers have; empty if there is none."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail") or ""
    return error if isinstance(error, str) else json.dumps(error)


def _take_chunk(chunk: Mapping[str, Any], now_s: float, outcome: Outcome) -> None:
    if usage := chunk.get("usage"):
        outcome.usage_prompt_tokens = int(usage["prompt_tokens"])
        outcome.usage_output_tokens = int(usage["completion_tokens"])
        outcome.num_cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    choices = chunk.get("choices") or ()
    if any(_has_text(choice) for choice in choices):
        outcome.chunk_times_s.append(now_s)
    if any(choice.get("finish_reason") for choice in choices):
        outcome.has_ended = True
    if choices:
        outcome.end_s = now_s


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(name) for name in _TEXT_FIELDS)
