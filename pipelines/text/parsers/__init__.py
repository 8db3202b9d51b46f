"""Parsers of answers: thinking and tool calls, as each family writes them."""

from pipelines.text.parsers.deltas import (
    CollectedCall,
    Content,
    Delta,
    OutputParser,
    ParsedAnswer,
    Reasoning,
    ToolCall,
    parse_answer,
)
from pipelines.text.parsers.families import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    AnswerFormat,
    ReasoningFormat,
    ToolFormat,
    answer_format,
)
from pipelines.text.parsers.reasoning import ThinkingSyntax
from pipelines.text.parsers.tool_prompt import takes_tools, with_tools_as_text

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "AnswerFormat",
    "CollectedCall",
    "Content",
    "Delta",
    "OutputParser",
    "ParsedAnswer",
    "Reasoning",
    "ReasoningFormat",
    "ThinkingSyntax",
    "ToolCall",
    "ToolFormat",
    "answer_format",
    "parse_answer",
    "takes_tools",
    "with_tools_as_text",
]
