"""The formats of the families: how each writes thinking and tool calls, and which one a chat template is for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipelines.errors import InputError
from pipelines.text.parsers.calls import CallReader, Gemma4Call, JsonCall
from pipelines.text.parsers.deltas import Content, Delta, OutputParser
from pipelines.text.parsers.reasoning import ReasoningParser, ThinkingSyntax
from pipelines.text.parsers.tools import CallSyntax, ToolCallParser, new_call_id

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class ToolFormat:
    """Format in which a family writes tool calls.

    signs: texts of which its chat templates have one. not_signs: texts that they don't have.
    """

    name: str
    syntax: CallSyntax
    signs: tuple[str, ...]
    not_signs: tuple[str, ...] = ()

    def parser(
        self, tool_names: Collection[str], new_id: Callable[[], str] = new_call_id, max_calls: int | None = None
    ) -> ToolCallParser:
        """Makes the parser of one answer. tool_names: of the request's tools. max_calls: None: any number."""
        names = frozenset(tool_names)

        def read_call(has_opener: bool) -> CallReader:
            if self.name == "gemma4":
                return Gemma4Call()
            # Where no control token says that a call begins, an object is one only if it calls a known tool.
            is_sure = has_opener and self.name == "qwen3"
            return JsonCall(None if is_sure else names, needs_arguments=not is_sure)

        return ToolCallParser(self.syntax, read_call, new_id, max_calls)


@dataclass(frozen=True)
class ReasoningFormat:
    """Format in which a family writes its thinking. signs: texts of which its chat templates have one."""

    name: str
    syntax: ThinkingSyntax
    signs: tuple[str, ...]


REASONING_FORMATS = (
    ReasoningFormat("qwen3", ThinkingSyntax("<think>", "</think>", tail="\n\n"), ("</think>",)),
    ReasoningFormat(
        "gemma4",
        ThinkingSyntax("<|channel>", "<channel|>", head="thought\n", is_anywhere=True, switch="<|think|>"),
        ("<|channel>",),
    ),
)
"""Formats of thinking, in the order in which a chat template is compared with them."""

TOOL_FORMATS = (
    ToolFormat("qwen3", CallSyntax(("<tool_call>",), "</tool_call>"), ("<tool_call>",), ("<function=",)),
    ToolFormat("gemma4", CallSyntax(("<|tool_call>",), "<tool_call|>", object_start=""), ("<|tool_call>",)),
    # A JSON object alone: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
    ToolFormat("llama3", CallSyntax(("<|python_tag|>",), is_bare=True), ("<|python_tag|>", "<|start_header_id|>")),
    # Gemma 3's template knows no tools. Google's guide (ai.google.dev/gemma/docs/capabilities/function-calling) has a
    # call as Python and one as {"name": ..., "parameters": ...}. The second needs no evaluation of Python, can be held
    # to a JSON schema, and is what `with_tools_as_text` asks for; models like to fence it.
    ToolFormat(
        "gemma3",
        CallSyntax(("```json\n", "```tool_code\n", "```tool_call\n"), "```", is_bare=True),
        ("<start_of_turn>",),
    ),
)
"""Formats of tool calls, in the order in which a chat template is compared with them."""

REASONING_PARSERS = (AUTO, NONE, *(format.name for format in REASONING_FORMATS))
TOOL_PARSERS = (AUTO, NONE, *(format.name for format in TOOL_FORMATS))


class AnswerParser:
    """Splits an answer into reasoning, content and tool calls, each where it is wanted."""

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolCallParser | None) -> None:
        self._reasoning, self._tools = reasoning, tools

    @property
    def is_done(self) -> bool:
        """Whether the answer has as many calls as it may have: what follows is dropped."""
        return self._tools is not None and self._tools.is_done

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and all of them are complete."""
        return self._tools is not None and self._tools.has_whole_calls

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer and returns what is certain now."""
        if self._reasoning is not None:
            return self._through_tools(self._reasoning.push(text))
        return self._through_tools([Content(text)] if text else [])

    def finish(self) -> list[Delta]:
        """Returns what was held back."""
        deltas = self._through_tools([] if self._reasoning is None else self._reasoning.finish())
        return deltas + ([] if self._tools is None else self._tools.finish())

    def _through_tools(self, deltas: list[Delta]) -> list[Delta]:
        if self._tools is None:
            return deltas
        split: list[Delta] = []
        for delta in deltas:
            split += self._tools.push(delta.text) if isinstance(delta, Content) else [delta]
        return split


@dataclass(frozen=True)
class AnswerFormat:
    """Format of a model's answers. reasoning, tools: None where it has no format, or it is not to be parsed."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None

    def parser(
        self,
        tool_names: Collection[str] = (),
        is_thinking_open: bool = False,
        new_id: Callable[[], str] = new_call_id,
        max_calls: int | None = None,
    ) -> OutputParser:
        """Makes the parser of one answer.

        tool_names: of the tools that the answer may call; none: no call is looked for. is_thinking_open: whether the
        prompt ends within the thinking. new_id: makes the id of a call. max_calls: what follows them is dropped; None:
        there may be any number.
        """
        reasoning = None if self.reasoning is None else ReasoningParser(self.reasoning.syntax, is_thinking_open)
        tools = self.tools.parser(tool_names, new_id, max_calls) if self.tools is not None and tool_names else None
        return AnswerParser(reasoning, tools)


def answer_format(chat_template: str, reasoning: str = AUTO, tools: str = AUTO) -> AnswerFormat:
    """Chooses the formats of a model.

    Args:
        chat_template: The model's chat template; empty if it has none.
        reasoning: One of REASONING_PARSERS; "auto" decides by the template.
        tools: One of TOOL_PARSERS; "auto" decides by the template.

    Raises:
        InputError: A name is unknown.
    """
    if reasoning not in REASONING_PARSERS:
        raise InputError(f"reasoning parser {reasoning!r} is unknown: choose one of {', '.join(REASONING_PARSERS)}")
    if tools not in TOOL_PARSERS:
        raise InputError(f"tool parser {tools!r} is unknown: choose one of {', '.join(TOOL_PARSERS)}")
    return AnswerFormat(
        next((f for f in REASONING_FORMATS if f.name == reasoning or _fits(f, chat_template, reasoning)), None),
        next((f for f in TOOL_FORMATS if f.name == tools or _fits(f, chat_template, tools)), None),
    )


def _fits(format: ReasoningFormat | ToolFormat, chat_template: str, choice: str) -> bool:
    """Whether the choice is left to the template, and this is its format."""
    not_signs = format.not_signs if isinstance(format, ToolFormat) else ()
    has_sign = any(sign in chat_template for sign in format.signs)
    return choice == AUTO and has_sign and not any(sign in chat_template for sign in not_signs)
