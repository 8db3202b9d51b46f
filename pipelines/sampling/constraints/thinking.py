"""Thinking before an answer that is held to a grammar."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.sampling.constraints.vocabulary import GrammarVocabulary, literal
from pipelines.text.parsers.reasoning import ThinkingSyntax


@dataclass(frozen=True)
class Thinking:
    """Thinking that may come before an answer, free in its words; the grammar begins after its end.

    syntax: of the model's family. is_open: whether the prompt ends within the opener, so that thinking must come.
    """

    syntax: ThinkingSyntax
    is_open: bool = False

    def grammar(self, vocabulary: GrammarVocabulary) -> str:
        """Lark grammar of the thinking and, after it, the grammar named `body`."""
        syntax = self.syntax
        tail = literal(syntax.tail) if syntax.tail else ""
        head = literal(syntax.head) if syntax.head else ""
        rest = f"thought {tail}"
        start = (
            f"{rest} @body"
            if self.is_open
            else f"thinking? @body\nthinking: {vocabulary.marker(syntax.opener)} {head} {rest}"
        )
        return f"start: {start}\n{vocabulary.text_until(syntax.closer, 'thought')}"
