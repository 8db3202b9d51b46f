"""The guard against control tokens that users spell: it tells them from those that the chat template writes."""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from pipelines.errors import InputError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_COMPARED = frozenset({"role", "type"})  # templates compare these with words of their own
# Patterns of one more character in each of _forms.
_TAILS = (".", r"\\U[0-9a-f]{8}", r"\\u[0-9a-f]{4}\\u[0-9a-f]{4}")
# Data in an assistant's message: arguments, which may repeat what users wrote, and in Gemma 4's template results too.
_DATA = ("tool_calls", "tool_responses")


class ControlTokenGuard:
    """Replaces control tokens that users spell by stand-ins while a chat template is rendered.

    A guard serves one rendering: `hide_messages` and `hide` prepare the template's input, `stretches` cuts its output.
    A stand-in is a few random characters of private use, which no template looks for and no user can foresee.

    tokens: control tokens of the tokenizer, and of images, by id. image_tokens: spellings that even assistants can't
    write. exempt: a spelling that users may write.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], image_tokens: Sequence[str] = (), exempt: str = "") -> None:
        self._tokens = tokens
        self._image_tokens = tuple(image_tokens)
        spellings = dict.fromkeys([*(token.content for token in tokens.values()), *image_tokens])
        self._spellings = tuple(spelling for spelling in spellings if spelling != exempt)
        self._key = "".join(chr(secrets.choice(_PRIVATE_USE)) for _ in range(3))
        self._stand_ins: dict[str, str] = {}  # a user's text -> its stand-in

    def hide_messages(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Returns the messages with stand-ins, or unchanged if there is nothing to hide."""
        hidden = [self._hide_message(message) for message in messages]
        return hidden if self._stand_ins else messages

    def hide(self, value: Any) -> Any:
        """Returns a value with stand-ins in all its strings, those of lists and mappings too, or unchanged."""
        hidden = self._hide(value, self._spellings)
        return hidden if self._stand_ins else value

    def stretches(self, rendered: str) -> list[tuple[str, bool]]:
        """Cuts the rendered text at its control tokens.

        Returns:
            Stretches of text with the users' spellings restored, each with whether it has such spellings.
        """
        if not self._stand_ins:
            return [(rendered, False)]
        parts = (part for part in self._written().split(rendered) if part)
        hidden = re.compile(
            "|".join(re.escape(form) + tail for form, tail in zip(_forms(self._key), _TAILS, strict=True))
        )
        shown = {form: text for text, stand_in in self._stand_ins.items() for form in _forms(stand_in)}
        return [
            (hidden.sub(lambda match: shown.get(match[0], match[0]), "".join(group)), is_spelled)
            for is_spelled, group in groupby(parts, key=lambda part: hidden.search(part) is not None)
        ]

    def encode_spelled(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Encodes text that spells control tokens to ids, none of which is a control token.

        If the vocabulary has a control token as an ordinary word too, the text is cut inside it.

        Args:
            text: The text.
            encode: An encoder that recognizes no special token.

        Raises:
            InputError: The text of a token can't be encoded otherwise.
        """
        inside = [match.start() + 1 for match in _any_of(self._spellings).finditer(text)]
        for cuts in ([], inside):
            pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
            token_ids = [token_id for piece in pieces for token_id in encode(piece)]
            if not (forged := self._tokens.keys() & set(token_ids)):
                return token_ids
        spelling = self._tokens[min(forged)].content
        raise InputError(
            f"the text spells the control token {spelling}: remove it, or from Python pass allow_control_tokens=True"
        )

    def _hide_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        is_assistant = message.get("role") == "assistant"
        hidden: dict[str, Any] = self._hide(message, self._image_tokens if is_assistant else self._spellings)
        return hidden | {name: self.hide(message[name]) for name in _DATA if name in message}

    def _hide(self, value: Any, spellings: tuple[str, ...], key: str = "") -> Any:
        if isinstance(value, str):
            text = self._hide_all(value, _any_of(spellings))
            return text if key in _COMPARED else self._hide_beginning(text, spellings)
        if isinstance(value, Mapping):
            return {self._hide(k, spellings): self._hide(v, spellings, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(item, spellings, key) for item in value]
        return value

    def _hide_all(self, text: str, spelled: re.Pattern[str]) -> str:
        while found := set(spelled.findall(text)):
            for spelling in sorted(found, key=len, reverse=True):
                text = text.replace(spelling, self._stand_in(spelling))
        return text

    def _hide_beginning(self, text: str, spellings: tuple[str, ...]) -> str:
        """Hides the beginning of a token at the end of a text: the template may write the rest of it after the text."""
        body, beginnings = text.rstrip(), _beginnings(spellings)
        longest = max(map(len, beginnings), default=0)
        sizes = range(min(longest, len(body)), 0, -1)
        size = next((size for size in sizes if body[-size:] in beginnings), 0)
        if not size:
            return text
        start = len(body) - size
        return text[:start] + self._stand_in(body[start:]) + text[len(body) :]

    def _stand_in(self, text: str) -> str:
        return self._stand_ins.setdefault(text, self._key + chr(_PRIVATE_USE[len(self._stand_ins)]))

    def _written(self) -> re.Pattern[str]:
        """Pattern of the control tokens, with the spaces around them that the tokenizer counts as their parts."""
        tokens = sorted(self._tokens.values(), key=lambda token: -len(token.content))
        patterns = (r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip for token in tokens)
        return re.compile(f"({'|'.join(patterns)})")


def without_control_tokens(backend: Tokenizer, tokens: Mapping[int, AddedToken]) -> Tokenizer:
    """Makes a tokenizer for text inside a chat: it recognizes all added tokens but these, and shares the vocabulary.

    transformers' `split_special_tokens` does that too, but it changes the tokenizer that other threads use.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = _inside_a_text(backend.pre_tokenizer)
    for token_id, token in sorted(backend.get_added_tokens_decoder().items()):
        (plain.add_special_tokens if token_id in tokens else plain.add_tokens)([token])
    plain.encode_special_tokens = True
    return plain


def _inside_a_text(pre_tokenizer: PreTokenizer) -> PreTokenizer:
    """Pre-tokenizer without the space that some put before the first word of a text only."""
    try:
        state = pre_tokenizer.__getstate__()
    except Exception:  # one written in Python has no state
        return pre_tokenizer
    inside = copy.deepcopy(pre_tokenizer)
    inside.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
    return inside


@lru_cache
def _any_of(spellings: tuple[str, ...]) -> re.Pattern[str]:
    """Pattern of any of the spellings, the longest first, as tokenizers match them."""
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")


@lru_cache
def _beginnings(spellings: tuple[str, ...]) -> frozenset[str]:
    return frozenset(spelling[:size] for spelling in spellings for size in range(1, len(spelling)))


def _forms(stand_in: str) -> tuple[str, ...]:
    """Forms of a stand-in: as it is, and as templates write it in a printed list or in JSON."""
    return stand_in, repr(stand_in)[1:-1], json.dumps(stand_in)[1:-1]
