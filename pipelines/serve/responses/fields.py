"""The request of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from pipelines.serve.chat.fields import MAX_MESSAGES, MAX_PARTS
from pipelines.serve.chat.tool_fields import MAX_TOOLS, ToolChoiceField, ToolName
from pipelines.serve.fields import MAX_TOP_LOGPROBS, ApiModel, Flag, GenerationFields

ITEM_TYPES = frozenset({"message", "function_call", "function_call_output", "reasoning"})
LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that asks for log probabilities."""


class InputPart(ApiModel):
    """A part of an item's content: text, or an image by its address."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = Field(None, description="A data: URI, or an address of an allowed host.")
    file_id: str | None = None


Parts = Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True)]


def _checked_item(item: Any) -> Any:
    """Refuses items of other types before their fields are looked at, which would fail for reasons of their own."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type")
    if kind == "item_reference" or (kind is None and "role" not in item and "id" in item):
        raise ValueError("this server stores no responses, so that an item can't be given by its id: send it whole.")
    if isinstance(kind, str) and kind not in ITEM_TYPES:
        raise ValueError(f"items of type {kind[:64]!r} are not supported.")
    return item


class InputItem(ApiModel):
    """An item of a conversation: a message, a function_call, a function_call_output, or reasoning."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None
    role: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(None, description="Of a message.")
    content: str | Parts | None = Field(None, description="Of a message, or of reasoning.")
    call_id: str | None = Field(None, description="Of a call and of its output.")
    name: str | None = Field(None, description="Of a call.")
    arguments: str | None = Field(None, description="Of a call, as JSON.")
    output: str | Parts | None = Field(None, description="Of a call.")


def _checked_tool(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise ValueError(f"tools of type {kind[:64]!r} are not supported: functions are.")
    return tool


class FunctionTool(ApiModel):
    """A function that the model may call. parameters: a JSON schema."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag = None


class TextFormat(ApiModel):
    """The form of the answer: text, json_object or json_schema."""

    type: str
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: Flag = None


class TextFields(ApiModel):
    """The form of the answer's text."""

    format: TextFormat | None = None
    verbosity: Any = Field(None, description="Ignored.")


class ReasoningFields(ApiModel):
    """Settings of the thinking. effort: `none` turns thinking off, as far as the chat template can."""

    effort: str | None = None
    summary: Any = Field(None, description="Ignored: the reasoning comes as it is.")


class ResponsesRequest(GenerationFields):
    """The body of POST /v1/responses. What needs stored responses is refused."""

    input: (
        str
        | Annotated[
            list[Annotated[InputItem, BeforeValidator(_checked_item)]],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        ]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: int | None = Field(None, description="Ignored: it counts calls of built-in tools.")
    tools: (
        Annotated[
            list[Annotated[FunctionTool, BeforeValidator(_checked_tool)]], Field(max_length=MAX_TOOLS, fail_fast=True)
        ]
        | None
    ) = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: Flag = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description=f"{LOGPROBS}; other values are ignored."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Any = Field(None, description="Ignored: nothing is stored.")
    truncation: str | None = Field(None, description="'disabled': nothing else is supported.")
    background: Flag = Field(None, description="Refused if true.")
    previous_response_id: Any = Field(None, description="Refused.")
    conversation: Any = Field(None, description="Refused.")
    prompt: Any = Field(None, description="Refused.")

    @field_validator("previous_response_id", "conversation")
    @classmethod
    def _refuse_stored(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("this server stores no responses: send the whole conversation as input.")
        return value

    @field_validator("prompt")
    @classmethod
    def _refuse_templates(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("this server stores no prompts: send instructions and input.")
        return value

    @field_validator("background")
    @classmethod
    def _refuse_background(cls, value: Flag) -> Flag:
        if value:
            raise ValueError("this server stores no responses, so that none can be computed in the background.")
        return value

    @field_validator("truncation")
    @classmethod
    def _refuse_truncation(cls, value: str | None) -> str | None:
        if value not in (None, "disabled"):
            raise ValueError("only 'disabled' is supported: items that do not fit have to be left out by the client.")
        return value

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer has log probabilities."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
