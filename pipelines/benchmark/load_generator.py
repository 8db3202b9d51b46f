"""The load generator: when requests are due, and the loop that sends them."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from time import perf_counter

from pipelines.benchmark.outcome import Clock, Outcome, RequestError, RequestPlan

Send = Callable[[RequestPlan, Clock], Awaitable[Outcome]]
"""A function that sends a request and waits for its end; the clock gives the seconds since the load began."""


def arrival_times(num_requests: int, rate: float, seed: int) -> list[float | None]:
    """Times of arrivals in a Poisson process, in seconds from the first; None for each if the rate is infinite.

    Args:
        num_requests: The number of arrivals.
        rate: Mean arrivals a second.
        seed: The same seed gives the same times.
    """
    if math.isinf(rate):
        return [None] * num_requests
    rng = random.Random(f"arrivals {seed}")
    gaps = (rng.expovariate(rate) for _ in range(num_requests - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


class Load:
    """One load. outcomes: the requests that have ended, in the order of their ends. duration_s: how long it has run."""

    def __init__(self, send: Send, plans: Sequence[RequestPlan], concurrency: int | None = None) -> None:
        self.outcomes: list[Outcome] = []
        self.duration_s = 0.0
        self._send, self._plans = send, plans
        self._slots = nullcontext() if concurrency is None else asyncio.Semaphore(concurrency)
        self._start = 0.0

    @property
    def num_unfinished(self) -> int:
        """Requests that were not sent, or had not ended when the load was stopped."""
        return len(self._plans) - len(self.outcomes)

    def clock(self) -> float:
        """The seconds since the load began."""
        return perf_counter() - self._start

    async def run(self, stop: asyncio.Event, on_end: Callable[[], None] = lambda: None) -> None:
        """Sends the requests when they are due, and waits for their ends; on `stop`, those in flight are cancelled.

        on_end: called at the end of each.
        """
        self._start = perf_counter()
        running = asyncio.create_task(self._run_all(on_end))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            self.duration_s = self.clock()
            for task in (running, stopping):
                task.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    async def _run_all(self, on_end: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as group:
            for plan in self._plans:
                if plan.scheduled_s is not None:
                    await asyncio.sleep(max(0.0, plan.scheduled_s - self.clock()))
                group.create_task(self._run_one(plan, on_end))

    async def _run_one(self, plan: RequestPlan, on_end: Callable[[], None]) -> None:
        async with self._slots:
            try:
                outcome = await self._send(plan, self.clock)
            except Exception as error:  # a failure of the client must not lose the other requests, nor this one
                now_s = self.clock()
                outcome = Outcome(plan, sent_s=now_s, end_s=now_s, error=RequestError("client", repr(error)))
        self.outcomes.append(outcome)
        on_end()
