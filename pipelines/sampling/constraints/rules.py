"""What an answer is held to, before it is compiled for a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.constraints.limits import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHARACTERS,
    MAX_PATTERN_CHARACTERS,
    check_size,
    checked_schema,
)
from pipelines.sampling.constraints.vocabulary import literal

JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
"""JSON as Python and the chat templates write it. With free whitespace a weak model may go on with it for ever, and
hardly a token is forced. Features that are not supported are errors."""


@dataclass(frozen=True)
class Rule:
    """A language of answers. kind: its name in messages. body: its grammar as llguidance takes it."""

    kind: str
    body: Mapping[str, Any]

    @classmethod
    def json_schema(cls, schema: Any) -> Rule:
        """JSON for a schema (drafts 2020-12 and 7), on one line, with properties in its order.

        Raises:
            InputError: The schema is none, or is too large.
        """
        return cls("JSON schema", {"json_schema": checked_schema(schema) | {"x-guidance": JSON_STYLE}})

    @classmethod
    def json_object(cls) -> Rule:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Rule:
        """The texts that a regular expression matches as a whole, in the syntax of Rust's regex crate.

        Raises:
            InputError: It is too large, or no text.
        """
        from llguidance import LLMatcher

        check_size("regex", pattern, MAX_PATTERN_CHARACTERS)
        (grammar,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
        return cls("regex", {"lark_grammar": grammar["lark_grammar"]})

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Rule:
        """One of these texts.

        Raises:
            InputError: There are none or too many, or one is empty, too large or no text.
        """
        if not texts or len(texts) > MAX_CHOICES:
            raise InputError(f"there are {len(texts)} texts to choose from: give 1 to {MAX_CHOICES}")
        for text in texts:
            check_size("choice", text, MAX_PATTERN_CHARACTERS)
            if not text:
                raise InputError("a text to choose from is empty")
        return cls.grammar(f"start: {' | '.join(map(literal, dict.fromkeys(texts)))}")

    @classmethod
    def grammar(cls, lark: str, max_characters: int = MAX_GRAMMAR_CHARACTERS) -> Rule:
        """A grammar in llguidance's variant of Lark, which begins with the rule `start`.

        Raises:
            InputError: It is too large, or no text.
        """
        check_size("grammar", lark, max_characters)
        return cls("grammar", {"lark_grammar": lark})
