"""Log probabilities in the shapes of the two APIs."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.fields import ApiModel
from pipelines.serve.token_texts import TokenTexts

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TopLogProb(ApiModel):
    """A token that was likely at a position. bytes: its UTF-8; null where it is part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogProb(TopLogProb):
    """The token that was chosen."""

    top_logprobs: list[TopLogProb]


class ChatLogProbs(ApiModel):
    """The log probabilities of a choice, one entry a token."""

    content: list[ChatTokenLogProb] | None
    refusal: list[ChatTokenLogProb] | None


class TextLogProbs(ApiModel):
    """The log probabilities of a text, one entry a token; nothing predicts the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_log_probs(entries: Sequence[TokenLogProbs], texts: TokenTexts) -> ChatLogProbs:
    """The entries as chat completions have them."""
    content = [
        ChatTokenLogProb(
            **_top(entry.token_id, entry.logprob, texts).__dict__,
            top_logprobs=[_top(token_id, logprob, texts) for token_id, logprob in entry.top],
        )
        for entry in entries
    ]
    return ChatLogProbs(content=content, refusal=None)


def _top(token_id: int, logprob: float, texts: TokenTexts) -> TopLogProb:
    return TopLogProb(token=texts(token_id), logprob=max(logprob, _LOWEST), bytes=texts.utf8(token_id))


class TextLogProbsBuilder:
    """Makes the log probabilities of a text completion, whose offsets count the characters before each token.

    offset: of the first token.
    """

    def __init__(self, texts: TokenTexts, skip_special_tokens: bool, offset: int = 0) -> None:
        self._texts, self._skip, self._offset = texts, skip_special_tokens, offset

    def build(self, entries: Sequence[TokenLogProbs], first_token: int | None = None) -> TextLogProbs:
        """The next entries; first_token: that of an echoed prompt, in front of them."""
        logprobs = TextLogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        if first_token is not None:
            self._add(logprobs, first_token, None, None)
        for entry in entries:
            self._add(logprobs, entry.token_id, max(entry.logprob, _LOWEST), self._top(entry))
        return logprobs

    def _add(self, logprobs: TextLogProbs, token_id: int, logprob: float | None, top: dict[str, float] | None) -> None:
        logprobs.tokens.append(self._texts.unique(token_id))
        logprobs.token_logprobs.append(logprob)
        logprobs.top_logprobs.append(top)
        logprobs.text_offset.append(self._offset)
        self._offset += len(self._texts(token_id, self._skip))

    def _top(self, entry: TokenLogProbs) -> dict[str, float]:
        """The likeliest tokens, and the chosen one among them, each under a name of its own."""
        chosen = self._texts.unique(entry.token_id)
        top: dict[str, float] = {}
        for token_id, logprob in entry.top:
            name = self._texts.unique(token_id)
            if name in top or (name == chosen and token_id != entry.token_id):
                name = f"token_id:{token_id}"
            top[name] = max(logprob, _LOWEST)
        top.setdefault(chosen, max(entry.logprob, _LOWEST))
        return top
