"""Stages leave plain lines in a log, a clean screen on a terminal, and their timings everywhere."""

from __future__ import annotations

import io
import re

import pytest

from pipelines.commands.progress import console_stages
from pipelines.stages import NullStages, Stages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stages: Stages) -> None:
    with stages.stage("weights"):
        pass
    with stages.stage("compile", "[cold]"):
        stages.note("a note")
    stages.note("ready")


def test_a_log_has_a_line_for_each_stage() -> None:
    stream = io.StringIO()
    stages = console_stages(stream)
    run(stages)
    lines = re.sub(r"\d+\.\d s", "0.0 s", stream.getvalue()).splitlines()
    assert lines == [
        "weights ... 0.0 s",
        "compile ([cold]) ... ",
        "a note",
        "compile ([cold]) ... 0.0 s",
        "ready",
    ]
    assert [name for name, _ in stages.timings] == ["weights", "compile"]


def test_a_stage_is_named_before_it_is_over() -> None:
    stream = io.StringIO()
    with console_stages(stream).stage("compile"):
        assert stream.getvalue() == "compile ... "


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failed_stage_ends_its_line(error: type[BaseException]) -> None:
    stream = io.StringIO()
    stages = console_stages(stream)
    with pytest.raises(error), stages.stage("compile"):
        raise error
    assert stream.getvalue() == "compile ... \n"
    assert stages.timings == []


def test_a_terminal_shows_stages_and_notes() -> None:
    stream = Terminal()
    stages = console_stages(stream)
    run(stages)
    for words in ("weights  0.0 s", "compile ([cold])  0.0 s", "a note", "ready"):
        assert words in stream.getvalue()
    assert [name for name, _ in stages.timings] == ["weights", "compile"]


def test_a_failed_stage_leaves_the_cursor_of_a_terminal_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), console_stages(stream).stage("compile"):
        raise KeyboardInterrupt
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().rindex(show) > stream.getvalue().rindex(hide)


def test_the_library_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    stages = NullStages()
    run(stages)
    assert [name for name, _ in stages.timings] == ["weights", "compile"]
    assert capfd.readouterr() == ("", "")
