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


IDLE = """
import sys, time
from pathlib import Path
from pipelines import PipelineConfig, SamplingParams, load_pipeline

def num_wakings():
    statuses = (file.read_text() for file in Path("/proc/self/task").glob("*/status"))
    return sum(int(status.rpartition("\\nvoluntary_ctxt_switches:")[2].split()[0]) for status in statuses)

with load_pipeline(PipelineConfig(model=sys.argv[1])) as pipe:
    pipe.generate("x", SamplingParams(max_new_tokens=2))
    time.sleep(0.2)  # MAX's threads spin for a while
    before = num_wakings()
    time.sleep(1)
    print(num_wakings() - before)
"""


@pytest.mark.compiles
def test_a_pipeline_that_waits_is_idle(checkpoints: Mapping[str, Path]) -> None:
    """One thread that looks for something every SLACK_NS, and some that do ten times a second; 5,000 times before."""
    command = [sys.executable, "-c", IDLE, str(checkpoints["demo"])]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 3 * 1_000_000_000 // SLACK_NS
