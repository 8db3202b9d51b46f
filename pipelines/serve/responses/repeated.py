"""The fields of a request that its response repeats."""

from __future__ import annotations

from typing import Any

from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat.tool_fields import AllowedToolChoice, NamedToolChoice, ToolChoice
from pipelines.serve.responses.fields import ResponsesRequest

_AS_GIVEN = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "user",
    "safety_identifier",
    "prompt_cache_key",
)


def repeated_fields(body: ResponsesRequest, params: SamplingParams) -> dict[str, Any]:
    """The fields as the response has them. params: those in use, the checkpoint's defaults included."""
    form = None if body.text is None else body.text.format
    return {
        **{name: getattr(body, name) for name in _AS_GIVEN},
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "temperature": params.temperature,
        "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": _tool_choice(body.tool_choice),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "service_tier": "default",
        "truncation": "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
    }


def _tool_choice(choice: ToolChoice | None) -> str | dict[str, Any]:
    if isinstance(choice, NamedToolChoice):
        return {"type": "function", "name": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        allowed = choice.allowed_tools
        return {"type": "allowed_tools", "mode": allowed.mode, "tools": [_tool_choice(tool) for tool in allowed.tools]}
    return choice or "auto"
