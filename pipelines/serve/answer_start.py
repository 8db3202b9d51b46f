"""Where an answer starts: within the thinking, before it, after it, or in the middle of a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.sampling.constraints import Thinking
from pipelines.text.parsers import ThinkingSyntax
from pipelines.text.tokenizer import TextTokenizer

_NUM_END_TOKENS = 16
"""Tokens of a prompt's end, in which markers of the thinking are looked for."""


@dataclass(frozen=True)
class AnswerStart:
    """The start of the answers to one request.

    syntax: of the model's thinking; None: it has none, or it stays in the content. begun: the text of the message that
    the answer continues; empty: it is a message of its own.
    """

    syntax: ThinkingSyntax | None
    tokenizer: TextTokenizer
    begun: str = ""

    def is_in_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within the thinking."""
        if self.syntax is None:
            return False
        return self.syntax.split(self.begun)[0] if self.begun else self.syntax.is_open(self._end(prompt))

    def thinking(self, prompt: Sequence[int]) -> Thinking | None:
        """The thinking that may come first; None: it is off, or over."""
        if self.syntax is None:
            return None
        if self.is_in_thinking(prompt):
            return Thinking(self.syntax, is_open=True)
        is_over = self.begun or self.syntax.is_over(self._end(prompt))
        return None if is_over or not self._is_on(self.syntax, prompt) else Thinking(self.syntax)

    @property
    def begun_content(self) -> str:
        """The part of `begun` that comes after the thinking."""
        return self.begun if self.syntax is None else self.syntax.split(self.begun)[1]

    def _end(self, prompt: Sequence[int]) -> str:
        return self.tokenizer.decode(prompt[-_NUM_END_TOKENS:], skip_special_tokens=False)

    def _is_on(self, syntax: ThinkingSyntax, prompt: Sequence[int]) -> bool:
        """Whether the prompt switches the thinking on."""
        switch = self.tokenizer.encode(syntax.switch, add_special_tokens=False) if syntax.switch else []
        return not syntax.switch or (len(switch) == 1 and switch[0] in prompt)
