"""Patterns and formats of JSON schemas as regular expressions of Lark, which match a whole text."""

from __future__ import annotations

import re
from typing import Any

from pipelines.errors import InputError

_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])"  # the days that every month has
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_GROUPS = r"([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?"  # of an IPv6 address
_PATH = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "duration": r"P([0-9]{1,4}W|[0-9]{1,4}D(T[0-9]{1,4}[HMS])?|T([0-9]{1,4}H)?[0-9]{1,4}M|T[0-9]{1,4}[HS])",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": rf"(([0-9a-f]{{1,4}}:){{7}}[0-9a-f]{{1,4}}|{_GROUPS}::{_GROUPS})",
    "uri": rf"[a-z][a-z0-9+.-]{{0,15}}:(\/\/{_LABEL}(\.{_LABEL}){{0,4}}(:[0-9]{{1,4}})?(\/{_PATH}*)*|{_PATH}+)"
    rf"(\?({_PATH}|[\/?])*)?(#({_PATH}|[\/?])*)?",
    "email": r"[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,32}){0,3}@[A-Za-z0-9]{1,32}(\.[A-Za-z0-9]{1,32}){1,3}",
}
"""Texts of a format, within the slashes of Lark; not all of them, but nothing else."""

_ANCHOR = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|([\^$|()])", re.DOTALL)


def searched(pattern: Any) -> str:
    """Expression for a text in which a schema's `pattern` is found anywhere, unless it is anchored.

    Raises:
        InputError: An anchor stands elsewhere than at an end of the whole pattern.
    """
    if not isinstance(pattern, str):
        raise InputError("the tool's JSON schema has a pattern that is no string")
    from llguidance import regex_to_lark

    symbols = [(match.start(), match[1]) for match in _ANCHOR.finditer(pattern) if match[1]]
    anchors = [start for start, symbol in symbols if symbol in "^$"]
    has_start, has_end = 0 in anchors, bool(anchors) and anchors[-1] == len(pattern) - 1 and pattern[-1] == "$"
    if len(anchors) != has_start + has_end or (anchors and _has_alternatives(symbols)):
        raise InputError(
            f"the tool's JSON schema has the pattern {pattern!r}: put its anchors at its ends, around all of it"
        )
    inner = pattern[has_start : len(pattern) - has_end]
    text = f"{'' if has_start else '(?s:.*)'}(?:{inner}){'' if has_end else '(?s:.*)'}"
    return str(regex_to_lark(text, "dw"))


def _has_alternatives(symbols: list[tuple[int, str]]) -> bool:
    """Whether there are alternatives outside of all groups."""
    depth = 0
    for _, symbol in symbols:
        depth += (symbol == "(") - (symbol == ")")
        if symbol == "|" and depth == 0:
            return True
    return False
