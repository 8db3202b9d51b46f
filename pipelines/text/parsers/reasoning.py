"""Splits the model's thinking off its answer while it is generated."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.text.parsers.deltas import Content, Delta, Reasoning
from pipelines.text.parsers.overlap import num_certain


@dataclass(frozen=True)
class ThinkingSyntax:
    """Where the thinking of a family stands in its answers.

    opener, closer: around it. head: a line that follows the opener and is no part of the thinking. tail: what the
    family writes between the closer and the answer. is_anywhere: whether thinking may begin again within the answer;
    otherwise only at its start. switch: the token that a prompt has where thinking is on; empty: it is on unless the
    prompt ends with thinking that is over.
    """

    opener: str
    closer: str
    head: str = ""
    tail: str = ""
    is_anywhere: bool = False
    switch: str = ""

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt, special tokens included, ends within the opener of the thinking; its end is enough."""
        end = prompt.rstrip()
        return end.endswith((self.opener, self.opener + self.head.rstrip()))

    def is_over(self, prompt: str) -> bool:
        """Whether a prompt, special tokens included, ends with thinking that is over; its end is enough."""
        return prompt.rstrip().endswith(self.closer)

    def split(self, begun: str) -> tuple[bool, str]:
        """Splits the beginning of an answer, which has its special tokens.

        Returns:
            Whether it ends within the thinking, and what comes after the thinking.
        """
        opened, closed = begun.rfind(self.opener), begun.rfind(self.closer)
        if opened > closed:
            return True, ""
        return False, begun if closed < 0 else begun[closed + len(self.closer) :].lstrip("\n")


class ReasoningParser:
    """Splits an answer into reasoning and content.

    Line breaks at the edges of the thinking, and between it and the content, are dropped. Thinking that is never closed
    stays reasoning.

    is_open: whether the prompt ends within the opener.
    """

    def __init__(self, syntax: ThinkingSyntax, is_open: bool = False) -> None:
        self._syntax = syntax
        self._held = ""
        self._state = self._before_reasoning if is_open else self._in_start
        self._deltas: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer and returns what is certain now."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def finish(self) -> list[Delta]:
        """Returns what was held back."""
        if self._state == self._in_reasoning:
            self._give(Reasoning(self._held.rstrip("\n")))
        elif self._state in (self._in_start, self._in_content):
            self._give(Content(self._held))
        self._held = ""
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _give(self, delta: Content | Reasoning) -> None:
        if delta.text:
            self._deltas.append(delta)

    # Each state takes from the held text and returns whether to go on: False waits for more.

    def _in_start(self) -> bool:
        text, opener = self._held.lstrip(), self._syntax.opener
        if text.startswith(opener):
            self._held, self._state = text[len(opener) :], self._in_head
        elif opener.startswith(text):
            return False
        else:
            self._state = self._in_content
        return True

    def _in_head(self) -> bool:
        """Between the opener and the first character of the thinking."""
        head = self._syntax.head
        if len(self._held) < len(head) and head.startswith(self._held):
            return False
        self._held, self._state = self._held.removeprefix(head), self._before_reasoning
        return True

    def _before_reasoning(self) -> bool:
        self._held = self._held.lstrip("\n")
        self._state = self._in_reasoning if self._held else self._state
        return bool(self._held)

    def _in_reasoning(self) -> bool:
        text, closer = self._held, self._syntax.closer
        start = text.find(closer)
        if start >= 0:
            self._give(Reasoning(text[:start].rstrip("\n")))
            self._held, self._state = text[start + len(closer) :], self._after_reasoning
            return True
        certain = text[: num_certain(text, [closer])].rstrip("\n")
        self._give(Reasoning(certain))
        self._held = text[len(certain) :]
        return False

    def _after_reasoning(self) -> bool:
        self._held = self._held.lstrip("\n")
        self._state = self._in_content if self._held else self._state
        return bool(self._held)

    def _in_content(self) -> bool:
        text, opener = self._held, self._syntax.opener
        if not self._syntax.is_anywhere:
            self._give(Content(text))
            self._held = ""
            return False
        start = text.find(opener)
        if start >= 0:
            self._give(Content(text[:start]))
            self._held, self._state = text[start + len(opener) :], self._in_head
            return True
        end = num_certain(text, [opener])
        self._give(Content(text[:end]))
        self._held = text[end:]
        return False
