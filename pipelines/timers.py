"""Timers of threads that MAX starts."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

SLACK_NS = 10_000_000
"""How late a thread may wake up."""
_SET_SLACK, _GET_SLACK = 29, 30
"""PR_SET_TIMERSLACK and PR_GET_TIMERSLACK in linux/prctl.h."""


@contextmanager
def coarse_timers() -> Iterator[None]:
    """Gives threads that start within the block timers that may be late; on Linux, elsewhere does nothing.

    The first execution of a graph starts MAX's logger, a thread that looks for messages every 0.1 ms for as long as the
    process lives: 5,000 times a second it interrupts the threads that compute, and it takes a tenth of a core of a
    server that is idle. It has no setting. A thread inherits how exact its timers are from the one that starts it.
    """
    if sys.platform != "linux":
        yield
        return
    prctl = _prctl()
    slack_ns = prctl(_GET_SLACK, 0)
    prctl(_SET_SLACK, SLACK_NS)
    try:
        yield
    finally:
        prctl(_SET_SLACK, slack_ns)


@functools.cache
def _prctl() -> Callable[[int, int], int]:
    function = ctypes.CDLL(None).prctl
    function.argtypes = [ctypes.c_int, ctypes.c_ulong]
    return cast(Callable[[int, int], int], function)
