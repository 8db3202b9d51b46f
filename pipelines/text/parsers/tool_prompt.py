"""Tools for chat templates that know none, such as Gemma 3's: as text, in the format of the family's parser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]


def takes_tools(chat_template: str) -> bool:
    """Whether a chat template writes tools itself."""
    return "tools" in chat_template


def with_tools_as_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Rewrites a conversation so that tools, calls and results are text, and users and the model take turns.

    The tools go into the system message. A call is a line `{"name": ..., "parameters": {...}}`, as in Google's guide to
    function calling with Gemma 3; a result is the user's.

    Args:
        messages: As in the OpenAI API: with `tool_calls`, and the roles `system`, `user`, `assistant` and `tool`.
        tools: `{"type": "function", "function": {...}}` each; none: the conversation has only had some.
    """
    rewritten: list[Message] = []
    names = _names_of_calls(messages)
    for message in messages:
        if message.get("role") == "tool":
            _add(rewritten, "user", _result(message, names))
        elif message.get("tool_calls"):
            _add(rewritten, "assistant", _with_calls(message))
        else:
            _add(rewritten, str(message.get("role")), message.get("content") or "")
    return _with_instructions(rewritten, tools) if tools else rewritten


def _add(messages: list[Message], role: str, content: Any) -> None:
    """Adds a message, or its content to the last one if that has the same role."""
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": content})
        return
    before = messages[-1]["content"]
    if isinstance(before, str) and isinstance(content, str):
        messages[-1]["content"] = f"{before}\n\n{content}"
    else:
        messages[-1]["content"] = [*_parts(before), *_parts(content)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or () if isinstance(part, Mapping))


def _names_of_calls(messages: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return {call.get("id"): str(call["function"]["name"]) for call in calls}


def _result(message: Mapping[str, Any], names: Mapping[Any, str]) -> str:
    name = message.get("name") or names.get(message.get("tool_call_id"), "the call")
    return f"Result of {name}: {_text(message.get('content'))}"


def _with_calls(message: Mapping[str, Any]) -> str:
    lines = [_text(message.get("content"))] if message.get("content") else []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = function.get("arguments") or {}
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        lines.append(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "parameters": {written}}}')
    return "\n".join(lines)


def _with_instructions(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    declarations = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    instructions = (
        f"You have access to these functions:\n{declarations}\n\n"
        "If you decide to call functions, answer with nothing but a JSON object for each call, one a line, in the form "
        '{"name": function name, "parameters": dictionary of argument names and values}.'
    )
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{_text(messages[0]['content'])}\n\n{instructions}"}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]
