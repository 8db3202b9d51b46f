"""Fields that the requests and answers of several APIs share. Null is as good as absent everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines.context import TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.errors import bad_request

MAX_CHOICES = 128
MAX_SEQUENCES = 1024
"""Sequences of one request: prompts times choices."""
MAX_TOP_LOGPROBS = 20

_TINY_TOP_P = 1e-9
_MAX_INT = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=_MAX_INT)]
Flag = bool | None


class ApiModel(BaseModel):
    """A part of a request or an answer; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), hide_input_in_errors=True)


class StreamOptions(ApiModel):
    """include_usage: a last chunk with the usage. continuous_usage_stats: the usage so far in every chunk."""

    include_usage: Flag = None
    continuous_usage_stats: Flag = None


class PromptTokensDetails(ApiModel):
    """cached_tokens: tokens of the prompt that the cache already had."""

    cached_tokens: int


class Usage(ApiModel):
    """Tokens of a request; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, contexts: Sequence[TextContext], num_choices: int, num_output_tokens: int) -> Usage:
        """The usage of the sequences of a request: for each prompt so many choices."""
        firsts = contexts[::num_choices]
        num_cached_tokens = sum(context.num_cached_tokens or 0 for context in firsts)
        num_prompt_tokens = sum(context.num_prompt_tokens for context in firsts)
        return cls(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=num_output_tokens,
            total_tokens=num_prompt_tokens + num_output_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
        )


class JsonSchema(ApiModel):
    """A schema, by which an answer is constrained."""

    name: str = "output"
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: Flag = None


class ResponseFormat(ApiModel):
    """The form of the answer.

    type: text, json_object, json_schema, regex or grammar. schema: of json_object and json_schema, as some clients give
    it. pattern: of regex. grammar: in Lark.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    pattern: str | None = None
    grammar: str | None = None


class StructuredOutputs(ApiModel):
    """The form of the answer, as vLLM has it: one of these. json: a schema, or its text."""

    model_config = ConfigDict(extra="allow")

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: Flag = None


class GenerationFields(ApiModel):
    """Sampling parameters, ends and forms of an answer: the fields that the requests of all APIs share.

    Unknown fields are accepted.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: Flag = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_INT)] | None = Field(None, description="0 or -1: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Count], Field(fail_fast=True)] | None = None
    ignore_eos: Flag = None
    min_tokens: Count | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token ids to numbers from -100 to 100.")
    allowed_token_ids: Annotated[list[Count], Field(fail_fast=True)] | None = None
    cache_salt: str | None = None
    skip_special_tokens: Flag = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = Field(None, description="As structured_outputs.json.")
    guided_regex: str | None = Field(None, description="As structured_outputs.regex.")
    guided_choice: list[str] | None = Field(None, description="As structured_outputs.choice.")
    guided_grammar: str | None = Field(None, description="As structured_outputs.grammar.")
    json_schema: dict[str, Any] | bool | str | None = Field(None, description="As structured_outputs.json.")
    regex: str | None = Field(None, description="As structured_outputs.regex.")
    grammar: str | None = Field(None, description="As structured_outputs.grammar.")


class SamplingFields(GenerationFields):
    """The fields that chat and text completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Refused unless it equals n.")
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Any = None

    @property
    def num_choices(self) -> int:
        """Choices of each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def repeats_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def params(self, choice: int = 0, **more: Any) -> SamplingParams:
        """The sampling parameters of one choice, which has a seed of its own.

        Raises:
            ApiError: A field that is not supported, or two that contradict each other.
            InputError: A value is out of range.
        """
        if self.best_of is not None and self.best_of != self.num_choices:
            raise bad_request("best_of is not supported: leave it out, and give n for several choices.", "best_of")
        if (self.min_tokens or 0) > (more.get("max_new_tokens") or _MAX_INT):
            raise bad_request("min_tokens must not exceed max_tokens.", "min_tokens")
        given = {name: getattr(self, name) for name in _TAKEN_AS_THEY_ARE}
        given |= {
            "top_p": self.top_p or (None if self.top_p is None else _TINY_TOP_P),
            "seed": None if self.seed is None else (self.seed + choice) % 2**64,
            "logit_bias": self._logit_bias(),
            **more,
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def _logit_bias(self) -> dict[int, float] | None:
        try:
            return None if self.logit_bias is None else {int(key): bias for key, bias in self.logit_bias.items()}
        except ValueError:
            raise bad_request("logit_bias must have token ids as its keys.", "logit_bias") from None


_TAKEN_AS_THEY_ARE = (
    "temperature",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "allowed_token_ids",
    "cache_salt",
    "skip_special_tokens",
)


def check_num_sequences(num_prompts: int, num_choices: int) -> int:
    """Number of sequences of a request.

    Raises:
        ApiError: There are more than MAX_SEQUENCES.
    """
    if (num_sequences := num_prompts * num_choices) > MAX_SEQUENCES:
        message = f"{num_prompts} prompts with {num_choices} choices each are more than {MAX_SEQUENCES} sequences."
        raise bad_request(message, "prompt" if num_prompts > 1 else "n")
    return num_sequences
