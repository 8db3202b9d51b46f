"""Calls in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


def in_background(call: Callable[[], _Result]) -> Future[_Result]:
    """Starts a call in a thread of its own and returns its future result.

    The thread is a daemon: unlike an executor's, it does not keep an interrupted program from ending.
    """
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # so that whoever waits may be cancelled, and not the call

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
