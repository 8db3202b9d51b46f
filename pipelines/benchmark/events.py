"""Reading of server-sent events."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Splits a byte stream into the data of its events, wherever the network has cut it.

    Lines end with LF, CR or CRLF; comments and fields other than `data` are dropped, as the standard asks (WHATWG HTML,
    section 9.2.6).
    """

    def __init__(self) -> None:
        self._rest: bytes = b""  # of a line that has not ended
        self._data: list[bytes] = []  # of an event that has not ended
        self._is_after_cr = False  # a LF that comes next is the second half of CRLF
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[str]:
        """Takes the next bytes and returns the data of the events that they complete."""
        if not chunk:
            return []
        skipped = 1 if self._is_after_cr and chunk.startswith(b"\n") else 0
        self._is_after_cr = chunk.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + chunk[skipped:])
        return [data for line in lines if (data := self._take(line)) is not None]

    def close(self) -> list[str]:
        """Ends the stream and returns the data of an event whose empty line is missing.

        A line that has not ended is dropped: it may be half of one.
        """
        last = self._take(b"")
        self._rest = b""
        return [] if last is None else [last]

    def _take(self, line: bytes) -> str | None:
        if self._is_first_line:
            line, self._is_first_line = line.removeprefix(_BYTE_ORDER_MARK), False
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = self._data, []
        return b"\n".join(data).decode(errors="replace") if data else None
