"""The texts of single tokens, as answers with log probabilities name them."""

from __future__ import annotations

from pipelines.text.tokenizer import TextTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ANCHOR = "a"


class TokenTexts:
    """Texts of tokens, each with the space that it begins with; they are kept, so that a token is decoded once."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(_ANCHOR, add_special_tokens=False)
        self._texts: dict[tuple[int, bool], str] = {}

    def __call__(self, token_id: int, skip_special_tokens: bool = False) -> str:
        """The text of a token; half a character is U+FFFD."""
        key = token_id, skip_special_tokens
        if key not in self._texts:
            # Decoders drop the space at the beginning of a text, so the token comes after another.
            start = self._tokenizer.decode(self._anchor, skip_special_tokens)
            text = self._tokenizer.decode([*self._anchor, token_id], skip_special_tokens)
            self._texts[key] = text[len(start) :]
        return self._texts[key]

    def unique(self, token_id: int) -> str:
        """The text of a token, or its id where other tokens have that text too: the halves of characters."""
        text = self(token_id)
        return f"token_id:{token_id}" if not text or _REPLACEMENT in text else text

    def utf8(self, token_id: int) -> list[int] | None:
        """The bytes of a token; None where it is part of a character, whose bytes the tokenizer does not tell."""
        text = self(token_id)
        return None if _REPLACEMENT in text else list(text.encode())
