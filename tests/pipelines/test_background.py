"""Calls in the background end quietly, also when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pipelines.background import in_background


def test_a_result_and_an_error_come_back() -> None:
    assert in_background(lambda: 5).result(30) == 5
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result(30)


@pytest.mark.parametrize("fails", [False, True])
def test_who_waits_may_be_cancelled_while_the_call_goes_on(fails: bool) -> None:
    """As a server that ends while its model is being loaded; an exception in the thread is an error in tests."""
    has_begun, may_end, threads = threading.Event(), threading.Event(), list[threading.Thread]()

    def call() -> float:
        threads.append(threading.current_thread())
        has_begun.set()
        assert may_end.wait(30)
        return 1 / (not fails)

    async def leave() -> None:
        waiting = asyncio.create_task(asyncio.wait_for(asyncio.wrap_future(in_background(call)), 30))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert has_begun.wait(30)
    may_end.set()
    threads[0].join(30)
    assert not threads[0].is_alive()
