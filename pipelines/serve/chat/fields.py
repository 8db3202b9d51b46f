"""The request and the answers of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from pipelines.serve.chat.tool_fields import MAX_TOOLS, Tool, ToolChoiceField
from pipelines.serve.fields import MAX_TOP_LOGPROBS, ApiModel, Count, Flag, SamplingFields, Usage
from pipelines.serve.log_probs import ChatLogProbs

MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
"""Parts of a message."""


class ContentPart(ApiModel):
    """A part of a message's content: text, or an image by its address."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None
    image_url: Any = Field(None, description='{"url": "data:image/png;base64,..."}, or an address of an allowed host.')


class Message(ApiModel):
    """A message of a conversation; fields that are unknown here go to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Wins over max_tokens.")
    logprobs: Flag = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: Flag = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of an answer; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens


class ToolCallFunction(ApiModel):
    """The function of a call. arguments: JSON, as a string."""

    name: str
    arguments: str


class AnswerToolCall(ApiModel):
    """A call of a tool by the model."""

    id: str
    type: Literal["function"]
    function: ToolCallFunction


class AnswerMessage(ApiModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[AnswerToolCall] = Field(default_factory=list)


class ChatChoice(ApiModel):
    """One answer. stop_reason: the stop string or stop token that ended it."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogProbs | None
    finish_reason: str
    stop_reason: str | int | None


class ChatCompletion(ApiModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ToolCallFunctionDelta(ApiModel):
    """A piece of a call. name: in the first only."""

    name: str = ""
    arguments: str


class ToolCallDelta(ApiModel):
    """A piece of a call. id, type: in the first only."""

    index: Count
    id: str = ""
    type: Literal["function"] = "function"
    function: ToolCallFunctionDelta


class ChatDelta(ApiModel):
    """Addition of a chunk to a message; keys that add nothing are absent."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = Field(default_factory=list)


class ChatChunkChoice(ApiModel):
    """Addition of a chunk to one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogProbs | None
    finish_reason: str | None
    stop_reason: str | int | None = None


class ChatChunk(ApiModel):
    """An event of a stream; choices is empty in the one with the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
