"""A lower bound of a text's number of tokens, computed without tokenizing it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Pre-tokenizers that keep all of a text, unless they are configured to remove the places where they split.
_SPLITS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})
_COMPOSING: Final = "NFC"


@dataclass(frozen=True)
class LengthBound:
    """The longest text that one token can stand for.

    max_token_length: length of the longest token, in bytes if is_byte_level, else in characters. composes: whether
    characters are composed (NFC) before the text is cut into tokens.
    """

    max_token_length: int
    is_byte_level: bool
    composes: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """Derives the bound of a tokenizer; None if it may drop text, or read text of any length as one token.

        Supported are byte pairs of characters that fall back to bytes (Gemma) and of bytes (Llama 3, Qwen).
        """
        from tokenizers.models import BPE

        model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=True)
        normalizers, splits = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
        if not isinstance(model, BPE) or normalizers is None or splits is None:
            return None
        is_byte_level = any(step["type"] == "ByteLevel" for step in splits)
        composes = any(step["type"] == _COMPOSING for step in normalizers)
        has_bytes = _has_all_bytes(vocabulary, is_byte_level) and (is_byte_level or model.byte_fallback)
        if not has_bytes or not all(map(_keeps_text, [*normalizers, *splits])) or composes > is_byte_level:
            return None
        added = tokenizer.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip for token in added):  # these include any number of spaces around them
            return None
        longest = max(len(token.content.encode()) for token in added) if added else 0
        return cls(max(longest, *map(len, vocabulary)), is_byte_level, composes)

    def min_num_tokens(self, text: str) -> int:
        """Smallest number of tokens that the text can have."""
        return -(-self._length(text) // self.max_token_length)

    def _length(self, text: str) -> int:
        if not self.is_byte_level:
            return len(text)
        if not self.composes:
            return len(text.encode(errors="replace"))
        composed = unicodedata.normalize(_COMPOSING, text).encode(errors="replace")
        # A later version of Unicode than Python's may compose characters that it adds, above U+FFFF: each is counted
        # as one byte instead of 4, for at most three become one.
        num_high = len(text.encode("utf-16-le", errors="replace")) // 2 - len(text)
        return len(composed) - 3 * num_high


def _steps(component: Any) -> list[dict[str, Any]] | None:
    """Steps of a normalizer or pre-tokenizer as tokenizer.json describes them; None if it is not of the library."""
    try:
        state = json.loads(component.__getstate__()) if component is not None else []
    except Exception:  # one written in Python has no state
        return None
    return list(_flat(state))


def _flat(state: Any) -> Any:
    nested = state if isinstance(state, list) else state.get("normalizers", state.get("pretokenizers"))
    if nested is None:
        return [state]
    return [step for inner in nested for step in _flat(inner)]


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether a step neither drops nor shortens text, except for composed characters."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(step["content"]) >= len(pattern)
    return step["type"] in {"Prepend", _COMPOSING} or (step["type"] in _SPLITS and step.get("behavior") != "Removed")


def _has_all_bytes(vocabulary: Collection[str], is_byte_level: bool) -> bool:
    """Whether every byte has a token, so that no byte is dropped or unknown."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = ByteLevel.alphabet() if is_byte_level else (f"<0x{byte:02X}>" for byte in range(256))
    return all(name in vocabulary for name in names)
