"""The request and the answers of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from pipelines.serve.fields import MAX_TOP_LOGPROBS, ApiModel, Count, Flag, SamplingFields, Usage
from pipelines.serve.log_probs import TextLogProbs

DEFAULT_MAX_TOKENS = 16
"""That of OpenAI's API."""

_TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS},
    ]
}


def parse_prompts(value: Any) -> list[str | list[int]]:
    """The prompts in a field that may be a string, strings, token ids, or several lists of token ids.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, str) or _is_token_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(prompt, str) or _is_token_ids(prompt) for prompt in value):
        return value
    raise ValueError("give a string, a list of strings, a list of token ids, or a list of such lists")


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(token) is int for token in value)


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], PlainValidator(parse_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    max_tokens: Count | None = Field(None, description=f"{DEFAULT_MAX_TOKENS} where it is absent.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Flag = None
    suffix: str | None = Field(None, description="Refused unless it is empty.")
    add_special_tokens: Flag = None

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


class CompletionChoice(ApiModel):
    """One text, or what a chunk adds to it. stop_reason: the stop string or stop token that ended it."""

    index: int
    text: str
    logprobs: TextLogProbs | None
    finish_reason: str | None
    stop_reason: str | int | None = None


class Completion(ApiModel):
    """The answer of /v1/completions, or an event of a stream; choices is empty in the one with the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
