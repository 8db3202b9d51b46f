"""What the engine keeps account of, for metrics and logs: times of requests, sizes of steps, hits of the cache."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from fake_model import FakeModel, new_pipeline, prompts_of, steps_of

from pipelines.context import RequestTimes
from pipelines.sampling.params import SamplingParams

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by a second whenever it is read."""
    seconds = itertools.count(100)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_a_request_has_the_time_of_each_stage() -> None:
    pipe = new_pipeline(max_batch_size=1)
    first, second = pipe.submit(prompts_of(5, 6), GREEDY)
    assert first.times == RequestTimes(submitted=100.0) and second.times == RequestTimes(submitted=101.0)
    pipe.engine.step()
    assert first.times == RequestTimes(100.0, 102.0, 103.0, 103.0)
    assert second.times == RequestTimes(submitted=101.0)
    pipe.finish(first)
    assert first.times == RequestTimes(100.0, 102.0, 103.0, 103.0 + 19)
    pipe.finish(second)
    assert second.times == RequestTimes(101.0, 123.0, 124.0, 124.0 + 19)
    assert (second.times.queue_s, second.times.prefill_s, second.times.decode_s) == (22.0, 1.0, 19.0)
    assert second.times.inference_s == 20.0


@pytest.mark.usefixtures("clock")
def test_a_request_that_is_cancelled_while_it_waits_was_never_scheduled() -> None:
    pipe = new_pipeline(max_batch_size=1)
    first, second = pipe.submit(prompts_of(5, 6), GREEDY)
    pipe.engine.step()
    pipe.cancel(second)
    assert second.is_finished and second.times == RequestTimes(submitted=101.0)
    assert second.times.queue_s is None and second.times.inference_s is None
    pipe.finish(first)


@pytest.mark.usefixtures("clock")
def test_a_preempted_request_keeps_the_time_at_which_it_was_first_scheduled() -> None:
    pipe = new_pipeline({"full": 4, "sliding": 10}, enable_prefix_caching=True)
    contexts = pipe.submit(prompts_of(250, 240), SamplingParams(max_new_tokens=100, ignore_eos=True))
    pipe.engine.step()
    scheduled = [context.times.scheduled for context in contexts]
    assert None not in scheduled
    for context in contexts:
        pipe.finish(context)
    assert pipe.engine.scheduler.num_preemptions > 0
    assert [context.times.scheduled for context in contexts] == scheduled
    assert pipe.engine.scheduler.num_prefix_query_tokens == 490, "its second admission is no query"


def test_steps_are_counted_by_their_tokens() -> None:
    pipe = new_pipeline(max_batch_tokens=100)
    pipe.generate(prompts_of(150, 40), GREEDY)
    stats = pipe.engine.stats
    assert stats.steps_by_tokens == Counter(sum(row.count for row in step) for step in steps_of(pipe))
    total = sum(num_tokens * count for num_tokens, count in stats.steps_by_tokens.items())
    assert total == stats.num_prefill_tokens + stats.num_decode_tokens


def test_a_step_that_is_interrupted_is_not_counted() -> None:
    pipe = new_pipeline()
    assert isinstance(pipe.model, FakeModel)
    pipe.model.failures.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipe.generate(prompts_of(5), GREEDY)
    assert pipe.engine.stats.num_steps == 0


def test_the_tokens_that_the_cache_was_asked_for_and_those_that_it_had() -> None:
    pipe, (prompt,) = new_pipeline(enable_prefix_caching=True), prompts_of(300)
    scheduler = pipe.engine.scheduler
    counts = []
    for params in (GREEDY, GREEDY, SamplingParams(max_new_tokens=1, prompt_logprobs=0)):
        pipe.generate([prompt], params)
        counts.append((scheduler.num_prefix_query_tokens, scheduler.num_prefix_hit_tokens))
    assert counts == [(300, 0), (600, 256), (600, 256)]


def test_without_a_prefix_cache_nothing_is_asked_for() -> None:
    pipe = new_pipeline()
    pipe.generate(prompts_of(300, 300), GREEDY)
    assert (pipe.engine.scheduler.num_prefix_query_tokens, pipe.engine.scheduler.num_prefix_hit_tokens) == (0, 0)
