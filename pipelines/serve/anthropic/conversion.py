"""A request of Anthropic's API as one for a chat completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.serve.anthropic.conversation import chat_messages
from pipelines.serve.anthropic.fields import (
    CountTokensRequest,
    MessagesRequest,
    OutputFormat,
    ToolChoiceParam,
    ToolParam,
)
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.converted import chat_request
from pipelines.serve.errors import bad_request

NAMES = {
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
}
"""Names of fields of a chat request in this API."""

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: CountTokensRequest) -> ChatRequest:
    """Converts a request; a last message of the assistant is continued.

    Raises:
        ApiError: Something in it can't be used.
    """
    messages, config, choice = chat_messages(body.messages, body.system), body.output_config, body.tool_choice
    thinking = {} if body.thinking is None else {"enable_thinking": body.thinking.type != "disabled"}
    given = {
        "messages": messages,
        "max_tokens": body.max_tokens if isinstance(body, MessagesRequest) else None,
        "stop": body.stop_sequences or body.stop,
        "tools": _tools(body.tools or ()),
        "tool_choice": _tool_choice(choice),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "reasoning_effort": None if config is None else config.effort,
        "chat_template_kwargs": {**thinking, **(body.chat_template_kwargs or {})} or None,
        "response_format": _response_format((config and config.format) or body.output_format),
        **_continuation(messages[-1]),
    }
    return chat_request(body, given, NAMES)


def _continuation(last: Mapping[str, Any]) -> dict[str, bool]:
    has_text = any(part["text"] for part in last["content"] if part["type"] == "text")
    is_continued = last["role"] == "assistant" and has_text and not last.get("tool_calls")
    return {"continue_final_message": True, "add_generation_prompt": False} if is_continued else {}


def _tools(tools: Sequence[ToolParam]) -> list[dict[str, Any]] | None:
    functions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
        for tool in tools
    ]
    return [
        {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}
        for function in functions
    ] or None


def _tool_choice(choice: ToolChoiceParam | None) -> str | dict[str, Any] | None:
    if choice is None or choice.type != "tool":
        return None if choice is None else _CHOICES[choice.type]
    if choice.name is None:
        raise bad_request("tool_choice.name: the tool has no name.", "tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(form: OutputFormat | None) -> dict[str, Any] | None:
    return None if form is None else {"type": "json_schema", "json_schema": {"name": "output", "schema": form.schema_}}
