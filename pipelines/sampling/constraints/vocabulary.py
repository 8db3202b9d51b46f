"""A model's vocabulary as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipelines.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarVocabulary:
    """The tokens of a tokenizer, prepared for masks: seconds and tens of megabytes for 262,144 of them.

    serialized: the tokenizer as the text of its tokenizer.json. vocab_size: number of logits.

    Raises:
        InputError: llguidance can't read the tokenizer.
    """

    def __init__(self, serialized: str, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        from llguidance import LLTokenizer

        fields = json.loads(serialized)
        if fields.get("padding") or fields.get("truncation"):  # which forced text would get too
            serialized = json.dumps({**fields, "padding": None, "truncation": None})
        self._added = {token["content"]: token["id"] for token in fields.get("added_tokens", ())}
        try:
            self.tokenizer: LLTokenizer = LLTokenizer(serialized, eos_token=list(eos_token_ids))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of the library are no Exceptions
            raise InputError(f"answers can't be held to a grammar with this tokenizer: {error}") from error
        self.mask_size = self.tokenizer.vocab_size
        self.vocab_size = min(vocab_size, self.mask_size)

    def marker(self, text: str) -> str:
        """Lark expression for a marker of the model's format: its control token, or else its text."""
        token_id = self._added.get(text)
        is_control = token_id is not None and self.tokenizer.is_special_token(token_id)
        return f"<[{token_id}]>" if is_control else literal(text)

    def text_until(self, marker: str, name: str) -> str:
        """Lark rules, of which the first is `name`, for any text up to a marker, with it."""
        expression = self.marker(marker)
        if expression.startswith("<["):
            return f"{name}: {name.upper()}_TEXT {expression}\n{name.upper()}_TEXT: {text_without(marker)}"
        return f"{name}[lazy]: /(?s:.*){escaped(marker)}/"


def literal(text: str) -> str:
    """Lark expression for a text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def text_without(*markers: str) -> str:
    """Lark terminal for any text that has none of these markers in it."""
    return " & ".join(["/(?s:.*)/", *(f"~/(?s:.*){escaped(marker)}(?s:.*)/" for marker in markers)])


def escaped(text: str) -> str:
    """A text within a regular expression of Lark."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")
