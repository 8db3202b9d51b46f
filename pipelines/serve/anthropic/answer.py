"""The answer of /v1/messages: whole, or as events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pydantic_core

from pipelines.serve.anthropic.message import (
    AnswerBlock,
    MessageEvent,
    MessageObject,
    MessageUsage,
    Stop,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from pipelines.serve.blocks import AnswerBlocks, Block, BlockChange
from pipelines.serve.chat.turn import ChatTurn
from pipelines.serve.sse import EventSource, event

_RUNNING = Stop(stop_reason=None, stop_sequence=None)
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
"""Type of the deltas of each kind of block, and the field with their text."""


class MessageAnswer:
    """The answer to one request; either `complete` or `events` is called, once. model: its name."""

    def __init__(self, turn: ChatTurn, model: str) -> None:
        self.close = turn.generation.close
        self._turn = turn
        self._blocks = AnswerBlocks()
        self._head: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    async def complete(self) -> MessageObject:
        """Waits for the whole answer.

        Raises:
            ApiError: It failed.
        """
        stop = _RUNNING
        async for step in self._turn:
            self._blocks.take(step)
            stop = self._stop(step.finish_reason)
        return self._message([_answer_block(block) for block in self._blocks.blocks], stop)

    async def events(self) -> EventSource:
        """Yields the events of a stream.

        Raises:
            ApiError: The answer failed.
        """
        stop = _RUNNING
        async for step in self._turn:
            if step.is_first:
                yield _event("message_start", message=self._message([], _RUNNING))
            for change in self._blocks.take(step):
                for each in _changed(change):
                    yield each
            stop = self._stop(step.finish_reason)
        yield _event("message_delta", delta=stop, usage=self._usage)
        yield _event("message_stop")

    def _message(self, content: list[AnswerBlock], stop: Stop) -> MessageObject:
        return MessageObject(**self._head, content=content, **dict(stop), usage=self._usage)

    @property
    def _usage(self) -> MessageUsage:
        usage = self._turn.usage
        num_cached_tokens = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(
            input_tokens=usage.prompt_tokens - num_cached_tokens,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=num_cached_tokens,
            output_tokens=usage.completion_tokens,
        )

    def _stop(self, finish_reason: str | None) -> Stop:
        """The end of the answer, in the words of this API."""
        matched = self._turn.stop_reason(0)
        match finish_reason:
            case None:
                return _RUNNING
            case "tool_calls":
                return Stop(stop_reason="tool_use", stop_sequence=None)
            case "length":
                is_own_limit = self._turn.usage.completion_tokens >= (self._turn.body.max_new_tokens or 0)
                reason: StopReason = "max_tokens" if is_own_limit else "model_context_window_exceeded"
                return Stop(stop_reason=reason, stop_sequence=None)
            case _ if isinstance(matched, str):
                return Stop(stop_reason="stop_sequence", stop_sequence=matched)
        return Stop(stop_reason="end_turn", stop_sequence=None)


def _event(name: str, **fields: Any) -> str:
    return event(MessageEvent(type=name, **fields), name)


def _changed(change: BlockChange) -> Iterator[str]:
    """The events of a change."""
    block = change.block
    match change.kind:
        case "start":
            empty = Block(block.kind, block.index, block.call_id, block.name)
            yield _event("content_block_start", index=block.index, content_block=_answer_block(empty))
        case "delta":
            kind, field = _DELTAS[block.kind]
            yield _event("content_block_delta", index=block.index, delta={"type": kind, field: change.text})
        case "end":
            if block.kind == "reasoning":
                signature = {"type": "signature_delta", "signature": ""}
                yield _event("content_block_delta", index=block.index, delta=signature)
            yield _event("content_block_stop", index=block.index)


def _answer_block(block: Block) -> AnswerBlock:
    match block.kind:
        case "text":
            return TextBlock(type="text", text=block.text)
        case "reasoning":
            return ThinkingBlock(type="thinking", thinking=block.text, signature="")
    return ToolUseBlock(type="tool_use", id=block.call_id, name=block.name, input=_parsed(block.text))


def _parsed(arguments: str) -> dict[str, Any]:
    """Arguments as an object, which may have been cut; as the client's stream helper reads them."""
    try:
        parsed = pydantic_core.from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
