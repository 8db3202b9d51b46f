"""Finds tool calls in an answer while it is generated."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.text.parsers.calls import CallReader
from pipelines.text.parsers.deltas import Content, Delta, ToolCall
from pipelines.text.parsers.overlap import first_of, num_certain

_SEPARATORS = re.compile(r"[\s;,]*")


def new_call_id() -> str:
    """Makes an id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class CallSyntax:
    """Where the calls of a family stand in its answers.

    openers: texts that a call may follow. closer: the text that ends a call, or a group of them; empty: none does.
    is_bare: whether an answer may also begin with a call that has no opener. object_start: what a call begins with, if
    several may follow one opener; empty: each has its own.
    """

    openers: tuple[str, ...]
    closer: str = ""
    is_bare: bool = False
    object_start: str = "{"


class ToolCallParser:
    """Splits the text after the reasoning into content and tool calls.

    Whitespace next to a call is dropped. A call that breaks before its name is certain becomes content, from its opener
    on; one that breaks later keeps the arguments that were given out, and the rest becomes content.

    read_call: makes the reader of one call, told whether it has an opener. new_id: makes the id of a call. max_calls:
    what follows them is dropped; None: there may be any number.
    """

    def __init__(
        self,
        syntax: CallSyntax,
        read_call: Callable[[bool], CallReader],
        new_id: Callable[[], str] = new_call_id,
        max_calls: int | None = None,
    ) -> None:
        self._syntax, self._read_call, self._new_id, self._max_calls = syntax, read_call, new_id, max_calls
        self._held = ""  # text that is not decided yet
        self._state = self._in_start if syntax.is_bare else self._in_content
        self._is_after_call = False  # so that whitespace is dropped
        self._call: CallReader | None = None
        self._raw = ""  # of a call without a name yet
        self._num_calls, self._is_named, self._has_opener = 0, False, False
        self._num_whole = 0  # calls that are complete
        self._deltas: list[Delta] = []

    @property
    def is_done(self) -> bool:
        """Whether there are as many calls as there may be: what follows is dropped."""
        return self._num_calls == self._max_calls

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and all of them are complete."""
        is_in_call = self._state == self._in_call and self._is_named
        return self._num_whole > 0 and self._num_whole == self._num_calls + is_in_call

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the text and returns what is certain now."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def finish(self) -> list[Delta]:
        """Returns what was held back; an unfinished call without a name becomes content."""
        self._emit("" if self._is_named else self._raw)
        held = self._held.lstrip() if self._is_after_call else self._held
        is_cut_closer = self._state == self._after_call and self._syntax.closer.startswith(held)
        self._emit("" if is_cut_closer else held)
        self._held = self._raw = ""
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _emit(self, content: str) -> None:
        if content:
            self._deltas.append(Content(content))

    # Each state takes from the held text and returns whether to go on: False waits for more.

    def _in_start(self) -> bool:
        """At the start of an answer that may be a bare call."""
        text = self._held.lstrip()
        if text.startswith(self._syntax.object_start):
            self._begin_call("", has_opener=False)
        elif text:
            self._state = self._in_content
        return bool(text)

    def _in_content(self) -> bool:
        found = first_of(self._held, self._syntax.openers)
        if found is not None:
            start, opener = found
            before = self._held[:start]
            content = before.rstrip()
            self._show(content)
            self._raw = before[len(content) :]
            self._held = self._held[start + len(opener) :]
            self._begin_call(opener, has_opener=True)
            return True
        content = self._held[: num_certain(self._held, self._syntax.openers)].rstrip()
        self._show(content)
        self._held = self._held[len(content) :]
        return False

    def _show(self, content: str) -> None:
        """Gives content out, without the whitespace after a call."""
        if self._is_after_call and content.strip():
            content, self._is_after_call = content.lstrip(), False
        self._emit(content)

    def _begin_call(self, opener: str, has_opener: bool) -> None:
        self._raw += opener
        self._call, self._is_named, self._has_opener = self._read_call(has_opener), False, has_opener
        self._state = self._in_call

    def _in_call(self) -> bool:
        assert self._call is not None
        for position, character in enumerate(self._held):
            if not self._feed(self._call, character):
                self._held = self._held[position:]
                self._break_call(self._call)
                return True
            if self._call.is_done:
                self._held = self._held[position + 1 :]
                self._end_call(self._call)
                return True
        self._give_arguments(self._call)
        self._held = ""
        return False

    def _end_call(self, call: CallReader) -> None:
        self._give_arguments(call)
        self._raw, self._is_after_call = "", True
        self._num_calls, self._num_whole = self._num_calls + 1, self._num_whole + 1
        self._state = self._at_end if self.is_done else self._after_call

    def _feed(self, call: CallReader, character: str) -> bool:
        """Feeds a character to a call; False if it does not belong there."""
        call.feed(character)
        if call.is_bad:
            return False
        if call.name is None:
            self._raw += character
        return True

    def _give_arguments(self, call: CallReader) -> None:
        """Gives out the call's id and name, once they are certain, and the arguments so far."""
        if call.name is None:
            return
        arguments, call.arguments = call.arguments, ""
        if not self._is_named:
            self._is_named = True
            self._deltas.append(ToolCall(self._num_calls, self._new_id(), call.name, arguments))
        elif arguments:
            self._deltas.append(ToolCall(self._num_calls, arguments=arguments))

    def _break_call(self, call: CallReader) -> None:
        """Ends a call before the character that does not belong there, which stays for what follows."""
        if call.name is not None:
            self._give_arguments(call)
            self._num_calls += 1
        else:
            self._show(self._raw)
        self._raw, self._state = "", self._at_end if self.is_done else self._in_content

    def _at_end(self) -> bool:
        """After the last call that there may be."""
        self._held = ""
        return False

    def _after_call(self) -> bool:
        """After a call: its closer, or another call, or content."""
        separators = _SEPARATORS.match(self._held)
        rest = self._held[separators.end() :] if separators else self._held
        closer, start = self._syntax.closer, self._syntax.object_start
        if not rest or (len(rest) < len(closer) and closer.startswith(rest)):
            return False
        if start and rest.startswith(start):
            self._held = rest
            self._begin_call("", has_opener=self._has_opener)
            return True
        if closer and rest.startswith(closer):
            self._held = rest[len(closer) :]
        self._state = self._in_content
        return True
