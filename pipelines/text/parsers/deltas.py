"""The parts of an answer: content, reasoning and tool calls, piece by piece or collected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of the model's thinking."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, or more of its arguments.

    index: counted from 0 within the answer. id, name: set in the first delta of a call and in no other. arguments: the
    next piece of the JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta = Content | Reasoning | ToolCall


class OutputParser(Protocol):
    """Splits an answer into its parts while it is generated.

    Nothing is taken back, and all deltas together are the same however the text is cut into pieces. Malformed text
    raises nothing: it becomes content.
    """

    @property
    def is_done(self) -> bool:
        """Whether the answer has as many calls as it may have: what follows is dropped."""

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and all of them are complete."""

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer and returns what is certain now."""

    def finish(self) -> list[Delta]:
        """Returns what was held back, once no more text comes."""


@dataclass
class CollectedCall:
    """A tool call as a whole. arguments: JSON text, incomplete if the answer was cut there."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class ParsedAnswer:
    """An answer as a whole."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[CollectedCall] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        """Adds deltas in their order."""
        for delta in deltas:
            match delta:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case ToolCall(index, call_id, name, arguments):
                    if call_id is not None and name is not None:
                        self.tool_calls.append(CollectedCall(call_id, name))
                    self.tool_calls[index].arguments += arguments


def parse_answer(parser: OutputParser, text: str) -> ParsedAnswer:
    """Parses a complete answer with a fresh parser."""
    answer = ParsedAnswer()
    answer.add(parser.push(text))
    answer.add(parser.finish())
    return answer
