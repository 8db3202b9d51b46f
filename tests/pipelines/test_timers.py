"""Threads that are started with coarse timers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
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


STARTED = """
import sys
from pathlib import Path
from pipelines import PipelineConfig, SamplingParams, load_pipeline

def threads():
    return {file.name for file in Path("/proc/self/task").iterdir()}

with load_pipeline(PipelineConfig(model=sys.argv[1])) as pipe:
    before = threads()
    pipe.generate("x", SamplingParams(max_new_tokens=2))
    print(*(Path(f"/proc/{number}/timerslack_ns").read_text() for number in threads() - before))
"""


@pytest.mark.compiles
def test_what_the_first_execution_starts_has_coarse_timers(checkpoints: Mapping[str, Path]) -> None:
    """Not by how often they wake up: on a busy machine a timer that may be late is served with those of others."""
    command = [sys.executable, "-c", STARTED, str(checkpoints["demo"])]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr:
        pytest.skip("the timers of other threads are shown to root alone")
    assert done.returncode == 0, done.stderr
    slacks = [int(slack) for slack in done.stdout.split()]
    assert slacks and all(slack == SLACK_NS for slack in slacks)
