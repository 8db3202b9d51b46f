"""Standard streams of a command, which may be closed, full, or without a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class OutputError(Exception):
    """Raised when standard output can't be written.

    It is no OSError: those have other causes too, and rich handles them in its own way. is_broken_pipe: whether the
    reader has closed the pipe.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"can't write standard output: {error.strerror}")
        self.is_broken_pipe = isinstance(error, BrokenPipeError)


def open_standard_streams() -> None:
    """Replaces stdout by a stream that raises OutputError, and stderr by one that drops output that can't be written.

    Streams that were closed when the program started can't be written. Streams of a caller's own are left alone.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) < 3:
        pass  # a closed stream's descriptor: the next file to be opened would take it, and the program's output
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_stream(_Output, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Messages, sys.stderr)


class _Messages(io.FileIO):
    """Drops output that can't be written: a result is worth more than messages about it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Output(io.FileIO):
    """Raises OutputError once, then drops the rest of the buffers above it, which Python flushes as it exits."""

    has_failed = False

    def write(self, data: Any, /) -> int:
        if self.has_failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.has_failed = True
            raise OutputError(error) from error


def _text_stream(file_type: type[io.FileIO], stream: TextIO | None) -> TextIO:
    """Returns a text stream with the descriptor and the settings of a standard stream, which is None if closed."""
    if not isinstance(stream, io.TextIOWrapper):
        unwritable = os.open(os.devnull, os.O_RDONLY)
        return io.TextIOWrapper(io.BufferedWriter(file_type(unwritable, "w")), errors="replace")
    file = io.BufferedWriter(file_type(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        file, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )
