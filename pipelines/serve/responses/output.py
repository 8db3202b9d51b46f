"""The answer of /v1/responses: its items, its usage and the request's fields that it repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.fields import ApiModel
from pipelines.serve.log_probs import ChatTokenLogProb, chat_log_probs
from pipelines.serve.token_texts import TokenTexts

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextPart(ApiModel):
    """Text for the user. logprobs: empty unless they were asked for."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChatTokenLogProb]


class ReasoningPart(ApiModel):
    """Text of the model's thinking."""

    type: Literal["reasoning_text"]
    text: str


class MessageItem(ApiModel):
    """A message to the user."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[TextPart]


class ReasoningItem(ApiModel):
    """The model's thinking; there is no summary of it."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningPart]


class FunctionCallItem(ApiModel):
    """A call of a function. arguments: JSON, as a string; incomplete if the answer was cut there."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = ReasoningItem | MessageItem | FunctionCallItem


class InputTokensDetails(ApiModel):
    """cached_tokens: of the prompt, which the cache already had. cache_write_tokens: 0, since none are counted."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ApiModel):
    """reasoning_tokens: of the thinking, where it is told apart from the text; its markers count."""

    reasoning_tokens: int


class ResponseUsage(ApiModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(ApiModel):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(ApiModel):
    """Why a response is incomplete: its limit, or the model's, was reached."""

    reason: Literal["max_output_tokens"]


class ResponseObject(ApiModel):
    """The answer of /v1/responses. temperature, top_p: those in use. usage: null until the end."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"]
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None


def token_log_probs(entries: Sequence[TokenLogProbs], texts: TokenTexts) -> list[ChatTokenLogProb]:
    """Log probabilities as this API has them: no bytes where a token is part of a character."""
    content = chat_log_probs(entries, texts).content or []
    for entry in content:
        for each in (entry, *entry.top_logprobs):
            each.bytes = each.bytes or []
    return content
