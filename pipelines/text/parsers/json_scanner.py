"""A scanner of JSON text, character by character."""

from __future__ import annotations

import re

_LITERAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_LITERAL_CHARACTERS = frozenset("-+.0123456789eEtrufalsn")
_WHITESPACE = frozenset(" \t\r\n")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")


def is_json_literal(text: str) -> bool:
    """Whether a text is a JSON number, `true`, `false` or `null`."""
    return _LITERAL.fullmatch(text) is not None


class JsonScanner:
    """Follows one JSON object or array to its end. is_done: it is complete. is_bad: the text is no JSON.

    Subclasses learn where values begin and end.
    """

    def __init__(self) -> None:
        self.is_done = self.is_bad = False
        self.stack: list[str] = []
        self._expected = "value"  # or first key, key, colon, first value, comma, string, literal
        self._is_key = False
        self._escape = 0  # 1: after a backslash; 2 and more: hexadecimal digits that are missing, plus 1
        self._literal = ""

    def value_began(self) -> None:
        """Is called before the first character of a value, with the containers around it in `stack`."""

    def value_ended(self) -> None:
        """Is called after the last character of a value, with the containers around it in `stack`."""

    def key_character(self, character: str) -> None:
        """Is called with each character of a key, quotes and escapes as they are written."""

    def feed(self, character: str) -> None:
        """Takes the next character; none may follow the end."""
        if self._expected == "string":
            self._in_string(character)
        elif self._expected == "literal" and character in _LITERAL_CHARACTERS:
            self._literal += character
        else:
            if self._expected == "literal":
                self._end_literal()
            if not self.is_bad and character not in _WHITESPACE:
                self._between(character)

    def _between(self, character: str) -> None:
        """Takes a character outside of strings and literals that is no whitespace."""
        expected = self._expected
        if character == '"' and expected in ("first key", "key"):
            self._begin_string(is_key=True)
        elif expected == "colon" and character == ":":
            self._expected = "value"
        elif expected == "comma" and character == ",":
            self._expected = "key" if self.stack[-1] == "{" else "value"
        elif character in "}]" and self._can_close(character):
            self.stack.pop()
            self._end_value()
        elif expected in ("value", "first value"):
            self._begin_value(character)
        else:
            self.is_bad = True

    def _can_close(self, character: str) -> bool:
        opening, first = ("{", "first key") if character == "}" else ("[", "first value")
        return bool(self.stack) and self.stack[-1] == opening and self._expected in (first, "comma")

    def _begin_value(self, character: str) -> None:
        self.value_began()
        if character in "{[":
            self.stack.append(character)
            self._expected = "first key" if character == "{" else "first value"
        elif character == '"' and self.stack:
            self._begin_string(is_key=False)
        elif character in _LITERAL_CHARACTERS and self.stack:
            self._expected, self._literal = "literal", character
        else:
            self.is_bad = True

    def _end_value(self) -> None:
        self.value_ended()
        self._expected = "comma"
        self.is_done = not self.stack

    def _end_literal(self) -> None:
        if is_json_literal(self._literal):
            self._end_value()
        else:
            self.is_bad = True

    def _begin_string(self, is_key: bool) -> None:
        self._expected, self._is_key = "string", is_key
        if is_key:
            self.key_character('"')

    def _in_string(self, character: str) -> None:
        if self._is_key:
            self.key_character(character)
        if self._escape == 1:
            self.is_bad = character not in _ESCAPES
            self._escape = 5 if character == "u" else 0
        elif self._escape:
            self.is_bad = character not in _HEX
            self._escape = self._escape - 1 if self._escape > 2 else 0
        elif character == "\\":
            self._escape = 1
        elif character == '"':
            self._end_string()
        else:
            self.is_bad = character < " "

    def _end_string(self) -> None:
        if self._is_key:
            self._expected = "colon"
        else:
            self._end_value()
