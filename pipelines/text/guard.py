"""Control tokens that users spell, told apart from those that the chat template writes."""

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
_COMPARED = frozenset({"role", "type"})  # templates compare them with words of their own
# How _forms show one character more.
_TAILS = (".", r"\\U[0-9a-f]{8}", r"\\u[0-9a-f]{4}\\u[0-9a-f]{4}")
_TOOL_RESULTS = "tool_responses"  # an assistant's message may carry them in Gemma 4's template


class ControlTokenGuard:
    """Stand-ins for the control tokens that users spell, while a chat template is rendered.

    It serves one rendering: `hide_messages` and `hide` prepare what the template gets, `stretches` cuts what it gives.
    A stand-in is a few random characters of private use, which no template looks for and no user can foresee.

    tokens: those of the tokenizer, and of images, by id. image_tokens: spellings that even assistants can't write.
    exempt: one that users may write.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], image_tokens: Sequence[str] = (), exempt: str = "") -> None:
        self._tokens = tokens
        self._image_tokens = tuple(image_tokens)
        spellings = dict.fromkeys([*(token.content for token in tokens.values()), *image_tokens])
        self._spellings = tuple(spelling for spelling in spellings if spelling != exempt)
        self._key = "".join(chr(secrets.choice(_PRIVATE_USE)) for _ in range(3))
        self._stand_ins: dict[str, str] = {}  # what users wrote -> what stands for it

    def hide_messages(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The messages with stand-ins, or as they are where there is nothing to hide."""
        hidden = [self._hide_message(message) for message in messages]
        return hidden if self._stand_ins else messages

    def hide(self, value: Any) -> Any:
        """A value in which all strings, those of its lists and mappings too, have stand-ins; or as `hide_messages`."""
        hidden = self._hide(value, self._spellings)
        return hidden if self._stand_ins else value

    def stretches(self, rendered: str) -> list[tuple[str, bool]]:
        """Stretches of the rendered text, cut at its control tokens; True: users spelled some there, now restored."""
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
        """The ids of text that spells control tokens, none of which is among them.

        encode: recognizes no special token. Where the vocabulary has one as an ordinary word too, the text is cut
        inside it.

        Raises:
            InputError: A token can't be written otherwise.
        """
        inside = [match.start() + 1 for match in _any_of(self._spellings).finditer(text)]
        for cuts in ([], inside):
            pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
            token_ids = [token_id for piece in pieces for token_id in encode(piece)]
            if not (forged := self._tokens.keys() & set(token_ids)):
                return token_ids
        spelling = self._tokens[min(forged)].content
        raise InputError(f"the text spells the control token {spelling}: remove it, or pass allow_control_tokens=True")

    def _hide_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        is_assistant = message.get("role") == "assistant"
        hidden: dict[str, Any] = self._hide(message, self._image_tokens if is_assistant else self._spellings)
        if _TOOL_RESULTS in message:
            hidden[_TOOL_RESULTS] = self.hide(message[_TOOL_RESULTS])
        return hidden

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
        """Hides the beginning of a token at the end of a text: the template may put the rest of it behind."""
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
        """Matches control tokens, with the spaces around them that the tokenizer takes for parts of them."""
        tokens = sorted(self._tokens.values(), key=lambda token: -len(token.content))
        patterns = (r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip for token in tokens)
        return re.compile(f"({'|'.join(patterns)})")


def without_control_tokens(backend: Tokenizer, tokens: Mapping[int, AddedToken]) -> Tokenizer:
    """A tokenizer for text inside a chat: it recognizes all added tokens but these, and shares the vocabulary.

    transformers' `split_special_tokens` does that too, but by changing the tokenizer that other threads use.
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
    """The pre-tokenizer without the space that some put before the first word of a text alone."""
    try:
        state = pre_tokenizer.__getstate__()
    except Exception:  # one written in Python has none
        return pre_tokenizer
    inside = copy.deepcopy(pre_tokenizer)
    inside.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
    return inside


@lru_cache
def _any_of(spellings: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of them, the longest first, as tokenizers do."""
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")


@lru_cache
def _beginnings(spellings: tuple[str, ...]) -> frozenset[str]:
    return frozenset(spelling[:size] for spelling in spellings for size in range(1, len(spelling)))


def _forms(stand_in: str) -> tuple[str, ...]:
    """The stand-in as it is, and as templates write it when they print a list or make JSON of it."""
    return stand_in, repr(stand_in)[1:-1], json.dumps(stand_in)[1:-1]
