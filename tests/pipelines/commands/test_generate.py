"""Text comes in and goes out as it is meant, whatever the locale and the system that wrote it."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from pipelines.commands.generate import read_prompts
from pipelines.commands.progress import console_stages
from pipelines.errors import InputError

BOM = b"\xef\xbb\xbf"


def standard_input(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "latin-1", newline="\n")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\n", "a"),
        (b"a\n\n", "a\n"),
        (b"a\r\nb\r\n", "a\nb"),
        (b"a\r\n\r\n", "a\n"),
        (b"a\rb", "a\rb"),  # no line end: a progress bar's
        (BOM + b"a\n", "a"),
        (BOM + BOM + b"a", "\ufeffa"),
        (b"a" + BOM, "a\ufeff"),
        (BOM + "Größe 🎈\r\n".encode(), "Größe 🎈"),
    ],
)
def test_a_dash_reads_text_of_any_system(data: bytes, expected: str) -> None:
    assert read_prompts(["x\r\n", "-"], standard_input(data)) == ["x\r\n", expected]


def test_bytes_are_counted_from_the_start() -> None:
    with pytest.raises(InputError, match="at byte 4"):
        read_prompts(["-"], standard_input(BOM + b"a\xff"))


@pytest.mark.parametrize("data", [None, b"", b"\n", b"\r\n", BOM, BOM + b"\r\n"])
def test_standard_input_without_text(data: bytes | None) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        read_prompts(["-"], None if data is None else standard_input(data))


PRINT = """
import sys
from pipelines.commands.generate import set_output_encoding
set_output_encoding(sys.stdout, as_json=sys.argv[1] == "json")
print("Größe 🎈")
"""


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}, {"LC_ALL": "C"}]
)
def test_json_is_utf_8_in_every_locale_and_text_what_the_locale_has(environment: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}

    def printed(output: str) -> bytes:
        run = [sys.executable, "-c", PRINT, output]
        return subprocess.run(run, env=inherited | environment, capture_output=True, check=True).stdout

    assert printed("json") == "Größe 🎈\n".encode()
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    assert printed("text") == "Größe 🎈\n".encode(encoding, "replace")


def test_stages_without_a_stream_are_silent() -> None:
    stages = console_stages(None)
    with stages.stage("compile"):
        stages.note("a note")
    assert [name for name, _ in stages.timings] == ["compile"]
