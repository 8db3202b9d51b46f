"""Threads that are started with coarse timers."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from pipelines.timers import SLACK_NS, coarse_timers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no timer slack")


def slack_ns() -> int:
    return int(Path(f"/proc/{threading.get_native_id()}/timerslack_ns").read_text())


def slack_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(slack_ns()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_inherit_coarse_timers_and_the_caller_gets_its_own_back() -> None:
    before = slack_ns()
    with pytest.raises(KeyError), coarse_timers():
        assert slack_of_a_new_thread() == SLACK_NS
        raise KeyError
    assert slack_ns() == slack_of_a_new_thread() == before != SLACK_NS
