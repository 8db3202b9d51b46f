"""Incremental detokenization: from token ids, one at a time, to text that is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes, so at most 3 are incomplete. Tokenizers that fall back to bytes show each of them as
# a replacement character, byte-level ones show all of them as one.
_MAX_INCOMPLETE = 3
# The characters held back may stand for as many incomplete ones of 3 bytes each.
_MIN_WINDOW = 3 * _MAX_INCOMPLETE
_MAX_WINDOW = 16


class IncrementalDetokenizer:
    """Decodes tokens one by one to text, never to half a character.

    It decodes a window of a few tokens, from the last end of a character that was also the end of a token. anchor: the
    ids of some ordinary text; decoded in front of the window it keeps the window's leading space, which some decoders
    drop at the start of a text. For valid text, all pieces together are `decode` of all ids.
    """

    def __init__(self, decode: Callable[[list[int]], str], anchor: Sequence[int] = ()) -> None:
        self._decode = decode
        self._anchor = list(anchor)
        self._anchor_length = len(decode(self._anchor)) if anchor else 0
        self._is_first = True
        self._window: list[int] = []
        self._num_shown = 0  # characters of the window's text that were returned

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that is now final."""
        self._window.append(token_id)
        text = self._window_text()
        num_final = len(text)
        if text.endswith(_REPLACEMENT):
            num_final = max(len(text.rstrip(_REPLACEMENT)), len(text) - _MAX_INCOMPLETE, self._num_shown)
        piece = text[self._num_shown : num_final]
        self._num_shown = num_final
        # At the very start tokens without text are kept: they decide whether a space is dropped.
        if num_final == len(text) and (text or not self._is_first):
            self._window.clear()
            self._num_shown, self._is_first = 0, False
        elif len(self._window) > _MAX_WINDOW:
            self._shorten(num_held=len(text) - num_final)
        return piece

    def finish(self) -> str:
        """Returns the rest of the text; the bytes of an incomplete character become U+FFFD."""
        piece = self._window_text()[self._num_shown :] if self._window else ""
        self._window.clear()
        return piece

    def _window_text(self) -> str:
        if self._is_first:
            return self._decode(self._window)
        return self._decode(self._anchor + self._window)[self._anchor_length :]

    def _shorten(self, num_held: int) -> None:
        """Drops the beginning of a window in which no token ended with a character; text that is held back stays."""
        self._window = self._window[-_MIN_WINDOW:]
        self._is_first = self._is_first and self._num_shown + num_held == 0
        self._num_shown = max(0, len(self._window_text()) - num_held)


class StopChecker:
    """Ends a text before the first stop string, and holds back text that may be the beginning of one.

    Of several, the one that is complete first counts, so that the text does not depend on its cuts into pieces.

    matched: the stop string that ended the text; None until then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.matched: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Adds text; returns the text before a stop string, and whether there is one."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        starts = ((text.find(stop), stop) for stop in self._stops)
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start], True
        kept = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[kept:]
        return text[:kept], False

    def finish(self) -> str:
        """Returns the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, which is not in it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
