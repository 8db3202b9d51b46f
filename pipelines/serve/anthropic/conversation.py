"""Messages of Anthropic's API as messages of a chat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipelines.serve.anthropic.fields import ContentBlock, MessageParam
from pipelines.serve.errors import bad_request

# Claude Code begins its system text with it; it changes with every request, so that no prefix could be reused.
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_TEXT = frozenset({"text"})
_CONTENT = frozenset({"text", "image", "document"})


def chat_messages(
    messages: Sequence[MessageParam], system: str | Sequence[ContentBlock] | None
) -> list[dict[str, Any]]:
    """Converts a conversation; turns of one role that follow each other become one message.

    Raises:
        ApiError: A block lacks something, can't be used, or is at a wrong place.
    """
    conversation = _Conversation()
    instructions = [
        {**part, "text": text}
        for part in _parts(_blocks(system), "system", _TEXT)
        if (text := _BILLING_LINE.sub("", part["text"]))
    ]
    if instructions:
        conversation.turn("system")["content"] += instructions
    for i, message in enumerate(messages):
        conversation.add(message, f"messages.{i}.content")
    return conversation.messages


class _Conversation:
    """Messages, each with its content as a list of parts."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def turn(self, role: str) -> dict[str, Any]:
        """The last message, or a new one if its role is another."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": []})
        return self.messages[-1]

    def add(self, message: MessageParam, path: str) -> None:
        if message.role == "assistant":
            self._add_answer(_blocks(message.content), path)
            return
        allowed = _TEXT if message.role == "system" else _CONTENT
        if not message.content:
            self.turn(message.role)
        for i, block in enumerate(_blocks(message.content)):
            if block.type == "tool_result" and message.role == "user":
                self.messages.append(_tool_message(block, f"{path}.{i}"))
            else:
                self.turn(message.role)["content"] += _part(block, f"{path}.{i}", allowed)

    def _add_answer(self, blocks: Sequence[ContentBlock], path: str) -> None:
        turn = self.turn("assistant")
        for i, block in enumerate(blocks):
            match block.type:
                case "thinking" if block.thinking:
                    reasoning = filter(None, [turn.get("reasoning_content"), block.thinking])
                    turn["reasoning_content"] = "\n\n".join(reasoning)
                case "thinking" | "redacted_thinking":
                    continue
                case "tool_use":
                    turn.setdefault("tool_calls", []).append(_tool_call(block, f"{path}.{i}"))
                case _:
                    turn["content"] += _part(block, f"{path}.{i}", _TEXT)


def _blocks(content: str | Sequence[ContentBlock] | None) -> Sequence[ContentBlock]:
    if isinstance(content, str):
        return [ContentBlock.model_validate({"type": "text", "text": content})]
    return content or []


def _tool_call(block: ContentBlock, path: str) -> dict[str, Any]:
    function = {"name": _given(block, "name", path), "arguments": block.input or {}}
    return {"id": _given(block, "id", path), "type": "function", "function": function}


def _tool_message(block: ContentBlock, path: str) -> dict[str, Any]:
    content = _parts(_blocks(block.content), f"{path}.content", _CONTENT)
    if block.is_error:
        content = [{"type": "text", "text": "Error:"}, *content]
    return {"role": "tool", "tool_call_id": _given(block, "tool_use_id", path), "content": content}


def _given(block: ContentBlock, field: str, path: str) -> str:
    value = getattr(block, field)
    if value is None:
        raise bad_request(f"{path}.{field}: a {block.type} block needs it.", f"{path}.{field}")
    return str(value)


def _parts(blocks: Sequence[ContentBlock], path: str, allowed: frozenset[str]) -> list[dict[str, Any]]:
    return [part for i, block in enumerate(blocks) for part in _part(block, f"{path}.{i}", allowed)]


def _part(block: ContentBlock, path: str, allowed: frozenset[str]) -> list[dict[str, Any]]:
    """The parts of a chat message that a block becomes."""
    if block.type not in allowed:
        raise bad_request(f"{path}: a block of type {block.type!r} can't be here.", f"{path}.type")
    if block.type == "text":
        return [{"type": "text", "text": _given(block, "text", path)}]
    return _image(block, path) if block.type == "image" else _document(block, path)


def _image(block: ContentBlock, path: str) -> list[dict[str, Any]]:
    source = block.source
    if source is not None and source.type == "base64" and source.data is not None:
        url = f"data:{source.media_type or 'image/png'};base64,{source.data}"
    elif source is not None and source.type == "url" and source.url is not None:
        url = source.url
    else:
        raise bad_request(f"{path}.source: an image must be of type base64, with data, or url.", f"{path}.source")
    return [{"type": "image_url", "image_url": {"url": url}}]


def _document(block: ContentBlock, path: str) -> list[dict[str, Any]]:
    """A document of plain text, below its title and context."""
    source = block.source
    head = [{"type": "text", "text": text} for text in (block.title, block.context) if text]
    if source is not None and source.type == "text" and source.data is not None:
        return [*head, {"type": "text", "text": source.data}]
    if source is not None and source.type == "content":
        return [*head, *_parts(_blocks(source.content), f"{path}.source.content", frozenset({"text", "image"}))]
    raise bad_request(f"{path}.source: a document must be of type text, with data, or content.", f"{path}.source")
