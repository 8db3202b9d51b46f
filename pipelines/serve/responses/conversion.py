"""A request of the Responses API as one for a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.converted import chat_request
from pipelines.serve.errors import bad_request
from pipelines.serve.responses.conversation import chat_messages
from pipelines.serve.responses.fields import FunctionTool, ResponsesRequest

NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Names of fields of a chat request in this API."""


def to_chat(body: ResponsesRequest) -> ChatRequest:
    """Converts a request.

    Raises:
        ApiError: Something in it can't be used.
    """
    given = {
        "messages": chat_messages(body.input, body.instructions),
        "max_tokens": body.max_output_tokens,
        "logprobs": body.has_logprobs,
        "top_logprobs": body.top_logprobs if body.has_logprobs else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "chat_template_kwargs": body.chat_template_kwargs,
        "response_format": _response_format(body),
        "tools": _tools(body.tools or ()) or None,
        "tool_choice": body.tool_choice,
    }
    return chat_request(body, given, NAMES)


def _tools(tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in tools]


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    form = None if body.text is None else body.text.format
    if form is None or form.type == "text":
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    if form.schema_ is None:
        raise bad_request("text.format.schema: a format of type json_schema needs a schema.", "text.format.schema")
    schema = {"name": form.name, "description": form.description, "schema": form.schema_, "strict": form.strict}
    return {"type": "json_schema", "json_schema": {key: value for key, value in schema.items() if value is not None}}
