"""The requests of /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipelines.serve.chat.fields import MAX_MESSAGES, MAX_PARTS
from pipelines.serve.chat.tool_fields import MAX_TOOLS, ToolName
from pipelines.serve.fields import ApiModel, Flag, GenerationFields

BLOCK_TYPES = frozenset({"text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking"})


def _checked_block(block: Any) -> Any:
    """Refuses blocks of other types before their fields are looked at, which would fail for reasons of their own."""
    kind = block.get("type") if isinstance(block, dict) else None
    if isinstance(kind, str) and kind not in BLOCK_TYPES:
        raise ValueError(f"blocks of type {kind[:64]!r} are not supported.")
    return block


class Source(ApiModel):
    """The content of an image (base64 with its media_type, or url) or of a document (text or content)."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | ContentBlocks | None = None


class ContentBlock(ApiModel):
    """A part of a message's content, with the fields of its type."""

    type: str
    text: str | None = None
    source: Source | None = Field(None, description="Of an image or a document.")
    title: str | None = Field(None, description="Of a document.")
    context: str | None = Field(None, description="Of a document.")
    id: str | None = Field(None, description="Of a tool_use.")
    name: str | None = Field(None, description="Of a tool_use.")
    input: dict[str, Any] | None = Field(None, description="Of a tool_use.")
    tool_use_id: str | None = Field(None, description="Of a tool_result.")
    content: str | ContentBlocks | None = Field(None, description="Of a tool_result.")
    is_error: Flag = Field(None, description="Of a tool_result.")
    thinking: str | None = None


ContentBlocks = Annotated[
    list[Annotated[ContentBlock, BeforeValidator(_checked_block)]], Field(max_length=MAX_PARTS, fail_fast=True)
]
Source.model_rebuild()
ContentBlock.model_rebuild()


class MessageParam(ApiModel):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | ContentBlocks


def _checked_tool(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise ValueError(f"tools of type {kind[:64]!r} are not supported: those with an input_schema are.")
    return tool


class ToolParam(ApiModel):
    """A tool that the model may call. input_schema: a JSON schema."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: Flag = None


class ToolChoiceParam(ApiModel):
    """Whether tools may or must be called. name: of the one that must be."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Flag = None


class ThinkingParam(ApiModel):
    """Whether the model is to think before it answers, if its chat template lets that be chosen."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Any = Field(None, description="Ignored.")


class OutputFormat(ApiModel):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(ApiModel):
    """The form of the answer. effort: as `reasoning_effort` of a chat completion."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountTokensRequest(GenerationFields):
    """The body of POST /v1/messages/count_tokens: what a prompt is made of."""

    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: str | ContentBlocks | None = None
    tools: (
        Annotated[
            list[Annotated[ToolParam, BeforeValidator(_checked_tool)]], Field(max_length=MAX_TOOLS, fail_fast=True)
        ]
        | None
    ) = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="The older name of output_config.format.")
    stop_sequences: Annotated[list[str], Field(fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Any = Field(None, description="Ignored.")


class MessagesRequest(CountTokensRequest):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
