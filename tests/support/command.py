"""The `pipelines` command as tests run it: in a process of its own, or as a call where that shows the same."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

import cli

COMMAND = Path(sys.executable).with_name("pipelines")
STAGES = "config|checkpoint|tokenizer|graph|weights|compile|load|libraries|cache|prompts|warm-up"
STAGE = re.compile(rf"({STAGES}|\d+ requests)( \(.*\))? \.\.\.( \d+\.\d s)?|KV cache: .*")
TIMEOUT_S = 120


@dataclass(frozen=True)
class Result:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines on stderr, less those of the stages."""
        return [line for line in self.err.splitlines() if not STAGE.fullmatch(line.rstrip())]

    def error(self) -> str:
        """The one line that a refusal leaves."""
        assert self.code == 2
        assert self.out == ""
        (line,) = self.messages
        assert line.startswith("error: ")
        assert self.err.endswith(f"{line}\n")
        return line


class Caller:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        before = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main(list(arguments))
        finally:
            signal.signal(signal.SIGINT, before)
        assert isinstance(end.value.code, int)
        return Result(end.value.code, *self.capsys.readouterr())


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Result:
    """Runs the real command to its end."""
    done = subprocess.run(
        [COMMAND, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, env=_environment(environment)
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The real command while it runs; nothing of it is left afterwards."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    process = subprocess.Popen(
        [COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(environment),
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    limit = threading.Timer(TIMEOUT_S, process.kill)
    limit.start()
    try:
        with process:
            yield process
            process.kill()
    finally:
        limit.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def read_until(stream: IO[bytes] | None, text: bytes) -> bytes:
    """Reads a stream until it has given `text`, and at least something."""
    assert stream is not None
    seen = b""
    while not seen or text not in seen:
        chunk = os.read(stream.fileno(), 1 << 16)
        assert chunk, f"it ended with {seen!r}"
        seen += chunk
    return seen


def _environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment, less what importing MAX has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")} | changes
