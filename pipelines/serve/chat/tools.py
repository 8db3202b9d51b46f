"""The use of tools that a request allows, and tools as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.tool_fields import AllowedToolChoice, NamedToolChoice
from pipelines.serve.errors import bad_request
from pipelines.text.parsers import takes_tools, with_tools_as_text

MAX_TOOLS_CHARACTERS = 2**20
"""Size of a request's tools as JSON."""


@dataclass(frozen=True)
class ToolUse:
    """The use of tools that a request allows.

    functions: those that may be called: name, description, parameters, strict. choice: "auto", "required" or one that
    has to be called: {"function": {"name"}}. is_parallel: whether there may be several calls.
    """

    functions: Sequence[Mapping[str, Any]]
    choice: str | Mapping[str, Any] = "auto"
    is_parallel: bool = True

    @property
    def names(self) -> list[str]:
        """Names of the functions."""
        return [function["name"] for function in self.functions]

    @property
    def needs_grammar(self) -> bool:
        """Whether calls are forced, or have to be valid by their schemas."""
        return self.choice != "auto" or any(function.get("strict") for function in self.functions)

    def for_template(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them.

        Raises:
            ApiError: They are too large.
        """
        tools = [_for_template(function) for function in self.functions]
        if sum(len(json.dumps(tool)) for tool in tools) > MAX_TOOLS_CHARACTERS:
            raise bad_request(f"tools: they are larger than {MAX_TOOLS_CHARACTERS} characters.", "tools")
        return tools


def _for_template(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in function.items() if name != "strict"}}


def tool_use(body: ChatRequest) -> ToolUse | None:
    """The use of tools that a request allows; None: there are none to be called.

    Raises:
        ApiError: Two tools have one name, or the choice is none among them.
    """
    tools, choice = body.tools or (), body.tool_choice
    functions = {tool.function.name: tool.function.model_dump(exclude_none=True) for tool in tools}
    if len(functions) < len(tools):
        raise bad_request("tools: two of them have the same name.", "tools")
    if isinstance(choice, AllowedToolChoice):
        chosen = choice.allowed_tools.tools
        names = {tool.function.name for tool in chosen}
        choice = choice.allowed_tools.mode
        _check_known(names, functions)
        functions = {name: function for name, function in functions.items() if name in names}
    if isinstance(choice, NamedToolChoice):
        _check_known({choice.function.name}, functions)
        choice_as_json: str | dict[str, Any] = {"function": {"name": choice.function.name}}
    else:
        choice_as_json = choice or "auto"
    if not functions and choice == "required":
        raise bad_request("tool_choice asks for a call, but there are no tools.", "tool_choice")
    if not functions or choice == "none":
        return None
    return ToolUse(list(functions.values()), choice_as_json, body.parallel_tool_calls is not False)


def _check_known(names: set[str], functions: Mapping[str, Any]) -> None:
    if unknown := sorted(names - functions.keys()):
        raise bad_request(f"tool_choice: {unknown[0][:256]!r} is none of the tools.", "tool_choice")


def with_tools(
    messages: list[dict[str, Any]], use: ToolUse | None, template: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Puts tools where a chat template takes them from; one that knows no tools gets all about them as text.

    Returns:
        The messages, and the variables of the template.

    Raises:
        ApiError: The tools are too large.
    """
    tools = [] if use is None else use.for_template()
    if takes_tools(template):
        return messages, {"tools": tools} if tools else {}
    has_calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if tools or (has_calls and "tool" not in template):
        messages = with_tools_as_text(messages, tools)
    return messages, {}
