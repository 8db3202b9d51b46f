"""One tool call as a model writes it, character by character: JSON objects, and Gemma 4's own syntax."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Protocol

from pipelines.text.parsers.json_scanner import JsonScanner, is_json_literal

_ARGUMENT_KEYS = ("arguments", "parameters")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class CallReader(Protocol):
    """Reads one call. is_done: it is complete. is_bad: the last character can't belong to one.

    name: of the tool, once it is certain that this is a call. `arguments`: JSON text that was read and not taken yet.
    """

    is_done: bool
    is_bad: bool
    name: str | None
    arguments: str

    def feed(self, character: str) -> None:
        """Takes the next character."""


class JsonCall(JsonScanner):
    """A call as `{"name": ..., "arguments": {...}}`, or with `parameters`, in any order; other keys are skipped.

    names: the tools that may be called; None: any. needs_arguments: whether an object without them is no call.
    """

    def __init__(self, names: Collection[str] | None = None, needs_arguments: bool = False) -> None:
        super().__init__()
        self.name: str | None = None
        self.arguments = ""
        self._names, self._needs_arguments = names, needs_arguments
        self._key, self._value, self._found_name = "", "", ""
        self._is_in_value = self._has_arguments = False

    def feed(self, character: str) -> None:
        """Takes the next character."""
        was_in_value = self._is_in_value
        super().feed(character)
        if not self.is_bad and (was_in_value or self._is_in_value):
            self._add(character, is_last=not self._is_in_value)
        if not self.is_bad and self.name is None and self._found_name and (self._has_arguments or self.is_done):
            self.name = self._found_name
        if self.is_done and not self.is_bad:
            self._end()

    def key_character(self, character: str) -> None:
        """Notes a key of the call itself."""
        if len(self.stack) == 1:
            self._key += character

    def value_began(self) -> None:
        """Begins to note a value of the call itself."""
        if len(self.stack) == 1:
            self._is_in_value, self._value = True, ""

    def value_ended(self) -> None:
        """Ends the value."""
        if len(self.stack) == 1:
            self._is_in_value = False

    def _add(self, character: str, is_last: bool) -> None:
        """Adds a character to a value; that after a literal does not belong to it, but literals are not used."""
        key = self._key.strip('"')
        if key in _ARGUMENT_KEYS and not self._value:
            self.is_bad = self.is_bad or self._has_arguments  # a second time
        if key in _ARGUMENT_KEYS and (self._value or character).startswith("{"):
            self._has_arguments = True
            self.arguments += character
        self._value += character
        if is_last:
            self._end_member(key)

    def _end_member(self, key: str) -> None:
        self._key = ""
        if key == "name" and self._value.startswith('"') and not self._found_name:
            self._found_name = _text(self._value) or ""
            self.is_bad = not self._found_name or (self._names is not None and self._found_name not in self._names)
        elif key in _ARGUMENT_KEYS and not self._value.startswith("{"):
            self._has_arguments = True
            self._take_unusual(self._value)

    def _take_unusual(self, value: str) -> None:
        """Takes arguments that are a string of JSON, or null; nothing counts as no arguments."""
        text = _text(value) if value.startswith('"') else ""
        self.arguments = text or "{}"
        self.is_bad = text is None or not value.startswith(('"', "null"))

    def _end(self) -> None:
        if self.name is None or (self._needs_arguments and not self._has_arguments):
            self.name, self.is_bad = None, True
        elif not self._has_arguments:
            self.arguments = "{}"


def _text(value: str) -> str | None:
    """The text of a JSON string; None if it has half of a surrogate pair, which no answer can carry."""
    text = str(json.loads(value))
    return None if _SURROGATE.search(text) else text


class Gemma4Call:
    """A call as `call:NAME{key:value,...}`, where strings stand between `<|"|>` and have no escapes.

    The arguments become JSON. A value that is neither a string nor a JSON literal counts as a string.
    Source: `format_argument` in the model's chat template.
    """

    _QUOTE = '<|"|>'
    _HEADER = "call:"

    def __init__(self) -> None:
        self.is_done = self.is_bad = False
        self.name: str | None = None
        self.arguments = ""
        self._state = "header"  # then key, value, string, after
        self._text = ""  # of the header, a key or a bare value
        self._quote = ""  # the beginning of a quote
        self._stack: list[str] = []
        self._is_first = True  # in its container
        self._is_quoted_key = False

    def feed(self, character: str) -> None:
        """Takes the next character."""
        if self._state == "header":
            self._in_header(character)
            return
        if self._quote and self._QUOTE.startswith(self._quote + character):
            self._quote += character
            if self._quote == self._QUOTE:
                self._quote = ""
                self._at_quote()
            return
        pending, self._quote = self._quote, ""
        for text in pending:
            self._plain(text)
        if character == "<":
            self._quote = character
        else:
            self._plain(character)

    def _in_header(self, character: str) -> None:
        self._text += character
        header = self._text.lstrip()
        if header.startswith(self._HEADER) and character == "{":
            name = header[len(self._HEADER) : -1].strip()
            self.is_bad = not name
            self.name = name or None
            self._open("{")
        elif header.startswith(self._HEADER):
            self.is_bad = not (character.isalnum() or character in "_-.:/ ")
        else:
            self.is_bad = not self._HEADER.startswith(header)

    def _at_quote(self) -> None:
        """Takes a whole quote."""
        if self._state == "string":
            self.arguments += '"'
            self._state = "after"
        elif self._state == "value" and not self._text.strip():
            self._begin_item()
            self.arguments += '"'
            self._state = "string"
        elif self._state == "key" and (self._is_quoted_key or not self._text.strip()):
            self._is_quoted_key = not self._is_quoted_key
        else:
            self.is_bad = True

    def _plain(self, character: str) -> None:
        """Takes a character that is no part of a quote."""
        if self.is_bad:
            return
        if self._state == "string":
            self.arguments += json.dumps(character, ensure_ascii=False)[1:-1]
        elif self._state == "key":
            self._in_key(character)
        elif self._state == "value" and character not in ",]}" and not (character in "{[" and not self._text.strip()):
            self._text += character
        else:
            self._structure(character)

    def _in_key(self, character: str) -> None:
        if character == "}" and not self._text.strip() and not self._is_quoted_key:
            self._close(character)
        elif character == ":" and not self._is_quoted_key:
            self._begin_item()
            self.arguments += f"{json.dumps(self._text.strip(), ensure_ascii=False)}: "
            self._state, self._text, self._is_first = "value", "", True
        elif character == "," and not self._text:
            self.is_bad = True
        else:
            self._text += character

    def _structure(self, character: str) -> None:
        """Takes a character that begins or ends a container, or separates values."""
        if self._state == "value" and character in "{[":
            self._begin_item()
            self._open(character)
            return
        self._end_bare()
        if character == "," and self._state == "after":
            self._state = "key" if self._stack[-1] == "{" else "value"
            self._is_first = False
        elif character in "}]":
            self._close(character)
        elif not character.isspace():
            self.is_bad = True

    def _end_bare(self) -> None:
        text, self._text = self._text.strip(), ""
        if self._state == "value" and text:
            self._begin_item()
            self.arguments += text if is_json_literal(text) else json.dumps(text, ensure_ascii=False)
            self._state = "after"

    def _begin_item(self) -> None:
        """Writes the comma before an item, unless it is the first one, or the value of a key."""
        if not self._is_first:
            self.arguments += ", "
            self._is_first = True

    def _open(self, character: str) -> None:
        self._stack.append(character)
        self.arguments += character
        self._state, self._text, self._is_first = "key" if character == "{" else "value", "", True

    def _close(self, character: str) -> None:
        is_value_missing = self._state == "value" and self._stack[-1] == "{"
        if self._stack.pop() != {"}": "{", "]": "["}[character] or is_value_missing:
            self.is_bad = True
            return
        self.arguments += character
        self._state, self._text = "after", ""
        self.is_done = not self._stack
