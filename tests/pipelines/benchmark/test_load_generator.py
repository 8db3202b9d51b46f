"""Arrivals, the limit of requests in flight, and ends: all requests, a stop, a bug."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable

import pytest

from pipelines.benchmark.load_generator import Load, arrival_times
from pipelines.benchmark.outcome import Clock, Outcome, RequestPlan

PLANS = [RequestPlan(str(i), 1) for i in range(20)]


def test_arrivals_are_those_of_the_seed() -> None:
    times = arrival_times(50, 4.0, seed=7)
    assert times == arrival_times(50, 4.0, seed=7) != arrival_times(50, 4.0, seed=8)
    assert times[0] == 0.0
    assert times == sorted(time for time in times if time is not None)
    assert arrival_times(10, 4.0, seed=7) == times[:10]


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps are exponential: mean and deviation are 1 / rate, and e ** -1 of them are longer than that."""
    times = [time for time in arrival_times(20_001, 5.0, seed=0) if time is not None]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.03)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(0.2, rel=0.03)
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), rel=0.03)


def test_an_infinite_rate_has_no_times() -> None:
    assert arrival_times(3, math.inf, seed=0) == [None, None, None]


def run(send: Callable[[RequestPlan, Clock], object], **settings: int | None) -> Load:
    async def go() -> Load:
        load = Load(send, PLANS, **settings)  # type: ignore[arg-type]
        await load.run(asyncio.Event())
        return load

    return asyncio.run(go())


@pytest.mark.parametrize("concurrency", [1, 3, None])
def test_no_more_requests_are_in_flight_than_allowed(concurrency: int | None) -> None:
    in_flight = most = 0

    async def send(plan: RequestPlan, clock: Clock) -> Outcome:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(3):
            await asyncio.sleep(0)
        in_flight -= 1
        return Outcome(plan)

    load = run(send, concurrency=concurrency)
    assert {outcome.plan.prompt for outcome in load.outcomes} == {plan.prompt for plan in PLANS}
    assert most == (concurrency or len(PLANS))
    assert load.num_unfinished == 0 and load.duration_s > 0


def test_a_request_that_waits_for_a_slot_counts_from_when_it_was_due() -> None:
    async def go() -> Load:
        is_second_due = asyncio.Event()

        async def send(plan: RequestPlan, clock: Clock) -> Outcome:
            sent_s = clock()
            if plan.prompt == "first":
                asyncio.get_running_loop().call_later(0.02, is_second_due.set)
                await is_second_due.wait()
            return Outcome(plan, sent_s, [clock()], clock())

        plans = [RequestPlan("first", 1, scheduled_s=0.0), RequestPlan("second", 1, scheduled_s=0.001)]
        load = Load(send, plans, concurrency=1)
        await load.run(asyncio.Event())
        return load

    second = asyncio.run(go()).outcomes[1]
    assert second.start_s == 0.001
    assert second.send_delay_s == second.sent_s - 0.001 > 0
    assert second.ttft_s > second.send_delay_s


def test_a_stop_keeps_what_has_ended_and_cancels_the_rest() -> None:
    cancelled = []

    async def go() -> Load:
        stop = asyncio.Event()

        async def send(plan: RequestPlan, clock: Clock) -> Outcome:
            if int(plan.prompt) < 5:
                return Outcome(plan)
            stop.set()
            try:
                await asyncio.sleep(1000)
            finally:
                cancelled.append(plan.prompt)
            raise AssertionError

        load = Load(send, PLANS, concurrency=7)
        await load.run(stop)
        return load

    load = asyncio.run(go())
    assert sorted(int(outcome.plan.prompt) for outcome in load.outcomes) == [0, 1, 2, 3, 4]
    assert load.num_unfinished == 15
    assert len(cancelled) == 7


def test_a_bug_of_the_client_is_a_failed_request() -> None:
    async def send(plan: RequestPlan, clock: Clock) -> Outcome:
        if plan.prompt == "3":
            raise ZeroDivisionError("oops")
        return Outcome(plan)

    load = run(send)
    (failed,) = [outcome for outcome in load.outcomes if outcome.error]
    assert failed.error is not None and failed.error.kind == "client" and "oops" in str(failed.error)
    assert len(load.outcomes) == len(PLANS)
