"""Beginnings of markers at the end of a piece of text."""

from __future__ import annotations

from collections.abc import Iterable


def num_certain(text: str, markers: Iterable[str]) -> int:
    """Number of characters before the longest end of `text` that begins one of the markers."""
    return len(text) - max((_overlap(text, marker) for marker in markers), default=0)


def _overlap(text: str, marker: str) -> int:
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)


def first_of(text: str, markers: Iterable[str]) -> tuple[int, str] | None:
    """Start and text of the marker that comes first; None if none is there. No marker may begin another."""
    return min(((text.find(marker), marker) for marker in markers if marker in text), default=None)
