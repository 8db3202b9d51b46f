"""The answers of /v1/messages and /v1/messages/count_tokens, and the events of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pipelines.serve.fields import ApiModel


class TextBlock(ApiModel):
    """Text for the user."""

    type: Literal["text"]
    text: str


class ThinkingBlock(ApiModel):
    """Text of the model's thinking; nothing signs it."""

    type: Literal["thinking"]
    thinking: str
    signature: Literal[""]


class ToolUseBlock(ApiModel):
    """A call of a tool. input: what there is of its arguments, if the answer was cut there; empty if it is no JSON."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
AnswerBlock = ThinkingBlock | TextBlock | ToolUseBlock


class MessageUsage(ApiModel):
    """Tokens of a message. input_tokens: of the prompt, without those that the cache already had."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int


class Stop(ApiModel):
    """Why an answer ended; null until then. stop_sequence: the one that matched."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageObject(ApiModel):
    """The answer of /v1/messages. stop_reason, stop_sequence: null in the first event of a stream."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(ApiModel):
    """The answer of /v1/messages/count_tokens: the tokens of the prompt, as the chat template writes it."""

    input_tokens: int


class MessageEvent(ApiModel):
    """An event of a stream, with the fields of its type. index: of the block. usage: all tokens so far."""

    type: str
    message: MessageObject | None = None
    index: int | None = None
    content_block: AnswerBlock | None = None
    delta: dict[str, str] | Stop | None = None
    usage: MessageUsage | None = None


STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The message; with `stream`, server-sent events, the last of which is message_stop.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""Entry of /openapi.json for routes that can stream."""
