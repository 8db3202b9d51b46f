"""Items of a conversation as messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.serve.chat.messages import IMAGE_TYPES, TEXT_TYPES
from pipelines.serve.errors import bad_request
from pipelines.serve.responses.fields import InputItem, InputPart


def chat_messages(given: str | Sequence[InputItem], instructions: str | None) -> list[dict[str, Any]]:
    """Converts an input to messages, after a system message with the instructions.

    Reasoning, and the calls that follow it or a message of the assistant, become parts of one message.

    Raises:
        ApiError: An item or a part of one lacks something, or can't be used.
    """
    items = [InputItem.model_validate({"role": "user", "content": given})] if isinstance(given, str) else given
    conversation = _Conversation()
    if instructions:
        conversation.messages.append({"role": "system", "content": instructions})
    for i, item in enumerate(items):
        conversation.add(item, f"input.{i}")
    if not conversation.messages:
        raise bad_request("input: there is nothing but reasoning.", "input")
    return conversation.messages


class _Conversation:
    """Messages, and reasoning that belongs to the assistant's next one."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning: list[str] = []

    def add(self, item: InputItem, path: str) -> None:
        match item.type:
            case "reasoning":
                self._reasoning.append(_reasoning(item))
            case "function_call":
                self._add_call(item, path)
            case "function_call_output":
                content = _content(item.output, f"{path}.output")
                self._add({"role": "tool", "tool_call_id": _given(item, "call_id", path), "content": content})
            case _:
                role = _given(item, "role", path)
                self._add({"role": role, "content": _content(item.content, f"{path}.content")})

    def _add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._attach_reasoning()

    def _add_call(self, item: InputItem, path: str) -> None:
        function = {"name": _given(item, "name", path), "arguments": _given(item, "arguments", path)}
        call = {"id": _given(item, "call_id", path), "type": "function", "function": function}
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        self._attach_reasoning()
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _attach_reasoning(self) -> None:
        """Gives the last message the reasoning in front of it, which is dropped if it is not the assistant's."""
        message = self.messages[-1]
        reasoning = "\n\n".join(filter(None, [message.get("reasoning_content"), *self._reasoning]))
        if reasoning and message["role"] == "assistant":
            message["reasoning_content"] = reasoning
        self._reasoning = []


def _given(item: InputItem, field: str, path: str) -> str:
    value = getattr(item, field)
    if value is None:
        kind = (item.type or "message").replace("_", " ")
        raise bad_request(f"{path}.{field}: a {kind} needs a {field}.", f"{path}.{field}")
    return str(value)


def _reasoning(item: InputItem) -> str:
    """The text of reasoning, which other servers may have encrypted."""
    if isinstance(item.content, str):
        return item.content
    return "".join(part.text or "" for part in item.content or ())


def _content(content: str | Sequence[InputPart] | None, path: str) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{path}.{i}") for i, part in enumerate(content)]


def _part(part: InputPart, path: str) -> dict[str, Any]:
    if part.type in TEXT_TYPES:
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise bad_request(f"{path}: the part has no text.", f"{path}.text")
        return {"type": "text", "text": text}
    if part.type in IMAGE_TYPES:
        if part.image_url is None:
            raise bad_request(f"{path}: the part has no image_url, and no files are stored here.", f"{path}.image_url")
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    raise bad_request(f"{path}: parts of type {part.type[:64]!r} are not supported.", f"{path}.type")
