"""The scheduler: the rows of a step, preemption, and the bounds of waits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import scheduling
from kv_caches import new_cache

from pipelines.context import ImageSpan, TextContext
from pipelines.engine.scheduler import MAX_OVERTAKEN_STEPS, Scheduler
from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams

PAGES: dict[str, Any] = {"full": 100, "sliding": 100}


def new_scheduler(
    pages: dict[str, Any] | None = None, rows: int = 8, tokens: int = 512, max_length: int = 1000
) -> Scheduler:
    return Scheduler(new_cache(**(pages or PAGES), caching=False), rows, tokens, max_length)


def add(scheduler: Scheduler, *prompt_lengths: int, max_new_tokens: int = 200) -> list[TextContext]:
    params = SamplingParams(max_new_tokens=max_new_tokens)
    first = len(scheduler.running) + len(scheduler.waiting)
    contexts = [TextContext(str(first + i), [1] * length, params) for i, length in enumerate(prompt_lengths)]
    for context in contexts:
        scheduler.check(context)
        scheduler.add(context)
    return contexts


def step(scheduler: Scheduler) -> dict[str, int]:
    """Runs a step as the engine does; returns the number of tokens of each row."""
    batch = scheduler.plan().contexts
    counts = {context.request_id: context.num_scheduled_tokens for context in batch}
    assert 0 < sum(counts.values()) <= scheduler.max_step_tokens and len(counts) <= scheduler.max_batch_size
    for context in batch:
        scheduler.commit(context)
        if not context.num_remaining_tokens:
            context.tokens.append(1)
            if context.num_output_tokens == context.params.max_new_tokens:
                scheduler.remove(context)
    scheduler.cache.check()
    return counts


def test_one_budget_for_decodes_and_prefill_chunks() -> None:
    """Every request gets a token; of what is left the oldest prompt takes half, the shortest the rest."""
    scheduler = new_scheduler(tokens=100)
    add(scheduler, 30, 200, 5)
    assert [step(scheduler) for _ in range(4)] == [
        {"0": 30, "1": 65, "2": 5},
        {"0": 1, "1": 98, "2": 1},
        {"0": 1, "1": 37, "2": 1},
        {"0": 1, "1": 1, "2": 1},
    ]


def test_a_prompt_that_is_alone_takes_the_whole_step() -> None:
    scheduler = new_scheduler(tokens=100)
    add(scheduler, 250)
    assert [step(scheduler)["0"] for _ in range(4)] == [100, 100, 50, 1]


def test_the_oldest_prompt_keeps_half_of_the_step_whoever_comes() -> None:
    scheduler = new_scheduler(tokens=101)
    add(scheduler, 500)
    step(scheduler)
    for number in range(1, 5):
        add(scheduler, 40)
        counts = step(scheduler)
        assert counts["0"] >= 45 and counts[str(number)] == 40


def test_text_and_images_take_turns() -> None:
    scheduler = new_scheduler(tokens=100)
    add(scheduler, 10)
    step(scheduler)
    image = TextContext("image", [1] * 150, images=[ImageSpan(20, 80, np.zeros(1), bytes(32))])
    scheduler.add(image)
    assert [list(step(scheduler).items()) for _ in range(5)] == [
        [("0", 1), ("image", 20)],
        [("image", 60)],
        [("0", 1), ("image", 70)],
        [("0", 1), ("image", 1)],
        [("0", 1), ("image", 1)],
    ]


def test_no_more_rows_than_allowed() -> None:
    scheduler = new_scheduler(rows=2)
    first, *_ = add(scheduler, 5, 5, 5)
    assert step(scheduler) == {"0": 5, "1": 5}
    scheduler.remove(first)
    assert step(scheduler) == {"1": 1, "2": 5}


def test_a_chunk_may_have_a_limit_of_its_own() -> None:
    scheduler = new_scheduler(tokens=100)
    limited, _ = add(scheduler, 60, 90)
    limited.max_chunk_tokens = 25
    assert [step(scheduler) for _ in range(4)] == [
        {"0": 25, "1": 75},
        {"0": 25, "1": 15},
        {"0": 10, "1": 1},
        {"0": 1, "1": 1},
    ]


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_budget_below_the_number_of_rows_serves_the_oldest_first(budget: int) -> None:
    scheduler = new_scheduler(tokens=budget)
    contexts = add(scheduler, *[4] * 8, max_new_tokens=3)
    ended: list[str] = []
    num_steps = 0
    while scheduler.has_work:
        step(scheduler)
        num_steps += 1
        ended += [c.request_id for c in contexts if c.num_output_tokens == 3 and c.request_id not in ended]
    assert ended == sorted(ended) and len(ended) == 8
    assert num_steps <= 8 * (4 + 2) / budget + 8


def test_a_request_waits_until_all_its_tokens_have_pages_and_small_ones_overtake_it() -> None:
    scheduler = new_scheduler({"full": 4, "sliding": 8}, tokens=128)
    first, second, third = add(scheduler, 250, 300, 10, max_new_tokens=5)
    step(scheduler)
    assert list(step(scheduler)) == ["0", "2"]  # with two pages left, the second, of three, has to wait
    assert scheduler.waiting == [second] and third in scheduler.running
    scheduler.remove(first)
    assert step(scheduler) == {"1": 127, "2": 1}
    assert scheduler.num_preemptions == 0


def test_nobody_overtakes_one_that_was_overtaken_for_long_enough() -> None:
    scheduler = new_scheduler({"full": 4, "sliding": 8}, tokens=128)
    first, second = add(scheduler, 300, 200, max_new_tokens=150)
    num_overtakers = 0
    for _ in range(2 * MAX_OVERTAKEN_STEPS):
        scheduler.add(TextContext("small", [1, 1], SamplingParams(max_new_tokens=1)))
        num_overtakers += "small" in step(scheduler)
    assert num_overtakers == MAX_OVERTAKEN_STEPS and second in scheduler.waiting
    scheduler.remove(first)
    assert "1" in step(scheduler)


def test_who_needs_a_page_takes_it_from_the_youngest() -> None:
    scheduler = new_scheduler({"full": 4, "sliding": 8})
    add(scheduler, 127, 120, 100, 90)
    assert list(step(scheduler)) == ["0", "1", "2", "3"]
    assert list(step(scheduler)) == ["0", "1", "2", "3"]
    assert list(step(scheduler)) == ["0", "1", "2"]
    assert [context.request_id for context in scheduler.waiting] == ["3"]
    for _ in range(6):
        assert list(step(scheduler)) == ["0", "1", "2"]
    assert list(step(scheduler)) == ["0", "1"]
    assert [context.request_id for context in scheduler.waiting] == ["2", "3"]
    assert scheduler.num_preemptions == 2


def test_the_youngest_gives_way_itself() -> None:
    scheduler = new_scheduler({"full": 2, "sliding": 8})
    add(scheduler, 10, 126, max_new_tokens=100)
    assert [list(step(scheduler)) for _ in range(4)] == [["0", "1"], ["0", "1"], ["0", "1"], ["0"]]


def test_a_preempted_request_comes_back_once_and_not_in_every_step() -> None:
    scheduler = new_scheduler({"full": 3, "sliding": 8})
    add(scheduler, 100, 128, max_new_tokens=150)  # of 2 and 3 pages, in the end
    num_steps = 0
    while scheduler.has_work:
        step(scheduler)
        num_steps += 1
    assert scheduler.num_preemptions == 1
    assert num_steps <= 2 * 150 + 5


def test_cancelled_requests_leave_the_order_and_the_pages_right() -> None:
    scheduler = new_scheduler({"full": 4, "sliding": 8}, tokens=200)
    contexts = add(scheduler, 150, 150, 150)
    step(scheduler)
    step(scheduler)
    scheduler.remove(contexts[2])  # which waits
    scheduler.remove(contexts[0])  # which runs
    assert list(step(scheduler)) == ["1"]
    scheduler.remove(contexts[1])
    assert not scheduler.has_work and scheduler.cache.usage == 0


def test_a_request_that_would_not_fit_alone_is_refused_with_both_numbers() -> None:
    scheduler = new_scheduler({"full": 3, "sliding": 8})
    scheduler.check(TextContext("a", [1] * 300, SamplingParams(max_new_tokens=84)))
    with pytest.raises(InputError, match=r"385 tokens .* KV cache of 384: raise kv_cache_memory"):
        scheduler.check(TextContext("a", [1] * 300, SamplingParams(max_new_tokens=85)))
    limited = new_scheduler({"full": 3, "sliding": 8}, max_length=384)
    limited.check(TextContext("a", [1] * 300, SamplingParams(max_new_tokens=85)))  # ends at the model's limit


@pytest.mark.parametrize("seed", range(12))
def test_random_crowds_in_tiny_pools_all_end_and_the_oldest_always_advances(seed: int) -> None:
    rng = random.Random(seed)
    tokens = rng.choice([1, 3, 50, 128, 300])
    scheduler = new_scheduler({"full": 6, "sliding": rng.choice([6, 9])}, rng.choice([2, 4, 8]), tokens)
    lengths = [rng.randrange(1, 60 if tokens < 50 else 600) for _ in range(40)]
    contexts = [add(scheduler, length, max_new_tokens=rng.randrange(1, 160))[0] for length in lengths]
    unfinished = dict.fromkeys(contexts)
    half = max(1, (tokens - scheduler.max_batch_size) // 2)
    bound = sum(-(-len(c.tokens) // half) + 2 * (c.params.max_new_tokens or 0) for c in contexts)
    num_steps = 0
    while scheduler.has_work:
        running = [context for context in unfinished if context in scheduler.running]
        before = running[0].num_computed_tokens if running else 0
        batch = list(step(scheduler))
        num_steps += 1
        if running:
            assert (batch[0] == running[0].request_id and running[0].num_computed_tokens in (0, before + 1)) or (
                running[0].num_computed_tokens > before
            )
        for group in (scheduler.running, scheduler.waiting):
            order = [int(context.request_id) for context in group]
            assert order == sorted(order), "each group is in the order of arrival, preempted or not"
        for context in [c for c in unfinished if c.num_output_tokens == c.params.max_new_tokens]:
            del unfinished[context]
    assert num_steps <= bound, "not many more steps than one request after the other would take"
    assert not unfinished and scheduler.cache.usage == 0


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 30))])
def test_random_crowds_with_arrivals_cancels_and_images_end_within_the_bound(seed: int) -> None:
    crowd = scheduling.random_crowd(seed)
    result = scheduling.simulate(crowd, max_steps=crowd.bound + 150)
    assert all(request.end is not None for request in crowd.requests)
    assert result.max_kind_wait <= 2


@pytest.mark.parametrize("name", scheduling.cases())
def test_the_cases_that_hurt_wait_for_three_steps_at_most(name: str) -> None:
    """They waited 499, 196 and 2,005 steps while all was strictly first come, first served."""
    crowd, request = scheduling.cases()[name]
    scheduling.simulate(crowd)
    assert request.first_token is not None and request.first_token - request.arrival + 1 <= 3
