"""Tool calls in the history of a conversation, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic_core

from pipelines.serve.errors import bad_request


def template_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    """Converts the `tool_calls` of a message: arguments become objects, as templates want them.

    Arguments that are no JSON object stay the text that they are: the model may have written them so.

    Raises:
        ApiError: They have another shape than that of the API.
    """
    if not isinstance(calls, list):
        raise bad_request(f"{path} must be a list.", path)
    return [_template_call(call, f"{path}.{i}") for i, call in enumerate(calls)]


def _template_call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_request(f"{path}.function must have a name: other calls are not supported.", f"{path}.function")
    if not isinstance(call.get("id", ""), str):
        raise bad_request(f"{path}.id must be a string.", f"{path}.id")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | Mapping):
        raise bad_request(f"{path}.function.arguments must be JSON in a string.", f"{path}.function.arguments")
    return {**call, "type": "function", "function": {**function, "arguments": _parsed(arguments)}}


def _parsed(arguments: str | Mapping[str, Any] | None) -> Any:
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        parsed = pydantic_core.from_json(arguments, allow_inf_nan=False) if arguments.strip() else {}
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
