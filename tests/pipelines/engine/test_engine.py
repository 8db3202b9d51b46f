"""From prompts to text: the same whatever the batch, the chunks, the pages and who else is there."""

from __future__ import annotations

import random
from functools import cache
from itertools import zip_longest

import numpy as np
import pytest
from fake_model import (
    EOS,
    VOCAB_SIZE,
    FakeModel,
    assert_idle,
    fingerprints,
    greedy_text,
    logits_of,
    new_pipeline,
    prompts_of,
    random_prompt,
    steps_of,
    text_of,
)
from kv_caches import PAGE

import pipelines.text_generation
from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams
from pipelines.text_generation import GenerationOutput

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
TINY = {"full": 6, "sliding": 6}


def random_work(seed: int, count: int = 20) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, some with a common beginning, and ways to continue them."""
    rng = random.Random(seed)
    common = random_prompt(rng, 400)
    prompts = [random_prompt(rng, rng.choice((1, 20, 127, 128, 129, 300, 500))) for _ in range(count)]
    prompts = [common[: rng.randrange(400)] + prompt[:150] if rng.random() < 0.5 else prompt for prompt in prompts]
    choices = [
        {"ignore_eos": True},
        {"ignore_eos": True, "temperature": 1.0, "seed": 7, "top_p": 0.9},
        {"temperature": 0.7, "seed": 8, "top_k": 5, "logprobs": 2},
        {"ignore_eos": True, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"stop": ("aa", "k"), "min_tokens": 5},
    ]
    params = [SamplingParams(max_new_tokens=rng.randrange(5, 160), **rng.choice(choices)) for _ in prompts]  # type: ignore[arg-type]
    return prompts, params


@cache
def random_work_alone(seed: int) -> list[GenerationOutput]:
    return one_by_one(*random_work(seed))


def one_by_one(prompts: list[list[int]], params: list[SamplingParams]) -> list[GenerationOutput]:
    pipe = new_pipeline(max_batch_size=1)
    return [pipe.generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]


def test_the_text_is_the_models_and_ends_where_it_ends_it() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(5)
    expected = greedy_text(prompt, 500)
    assert expected[-1] == EOS and len(expected) < 500
    (output,) = pipe.generate([prompt], SamplingParams())
    assert output == GenerationOutput(text_of(expected), expected, "stop", num_prompt_tokens=5)
    assert_idle(pipe)


@pytest.mark.parametrize("budget", [1, 7, 128, 200, 512])
def test_chunks_and_batches_change_nothing(budget: int) -> None:
    prompts = prompts_of(1, 127, 128, 129, 400)
    pipe = new_pipeline(max_batch_tokens=budget)
    outputs = pipe.generate(prompts, GREEDY)
    assert [output.tokens for output in outputs] == [greedy_text(prompt, 20, True) for prompt in prompts]
    sizes = [sum(row.count for row in step) for step in steps_of(pipe)]
    assert max(sizes) <= budget and sum(sizes) == sum(len(prompt) + 19 for prompt in prompts)
    if 7 <= budget < 512:
        kinds = [
            {row.count == 1 for row in step if row.start} | {row.start == 0 for row in step} for step in steps_of(pipe)
        ]
        assert {True, False} in kinds, "a step has decodes and prefill chunks together"
    assert_idle(pipe)


def test_each_token_is_computed_once_in_its_place() -> None:
    pipe = new_pipeline(max_batch_tokens=50)
    requests = pipe.submit(prompts_of(1, 60, 300), GREEDY)
    for request in requests:
        pipe.finish(request)
    for request in requests:
        rows = [row for step in steps_of(pipe) for row in step if row.request_id == request.context.request_id]
        positions = [position for row in rows for position in range(row.start, row.start + row.count)]
        assert positions == list(range(request.context.prompt_length + 19))


@pytest.mark.parametrize("caching", [False, True], ids=["plain", "prefix-caching"])
@pytest.mark.parametrize(("rows", "budget"), [(3, 5), (3, 256), (8, 20), (8, 100), (8, 512)])
def test_random_work_gives_the_same_in_any_crowd(rows: int, budget: int, caching: bool) -> None:
    """Requests sampled, penalized, stopped; preempted in a cache of six pages, with shared prefixes or without."""
    prompts, params = random_work(seed=rows + budget)
    pipe = new_pipeline(
        TINY,
        max_length=TINY["full"] * PAGE,
        max_batch_size=rows,
        max_batch_tokens=budget,
        enable_prefix_caching=caching,
    )
    assert pipe.generate(prompts, params) == random_work_alone(rows + budget)
    assert pipe.engine.scheduler.num_preemptions > 0
    num_computed = sum(row.count for step in steps_of(pipe) for row in step)
    assert num_computed < 2 * sum(len(prompt) for prompt in prompts) + 160 * len(prompts), "not again and again"
    assert_idle(pipe)


def test_a_cached_prefix_is_not_computed_again() -> None:
    plain, caching = new_pipeline(), new_pipeline(enable_prefix_caching=True)
    (prompt,) = prompts_of(300)
    for pipe in (plain, caching):
        first, second = (pipe.generate([prompt], GREEDY)[0].tokens for _ in range(2))
        assert first == second == greedy_text(prompt, 20, True)
        assert_idle(pipe)
    starts = [min(row.start for step in steps_of(pipe)[20:] for row in step) for pipe in (plain, caching)]
    assert starts == [0, 256]


def test_streams_advance_with_each_other_and_with_generate() -> None:
    pipe, prompts = new_pipeline(max_batch_tokens=40), prompts_of(30, 50, 170)
    first, second = pipe.stream(prompts[0], GREEDY), pipe.stream(prompts[1], GREEDY)
    chunks = [(next(first), next(second)) for _ in range(3)]
    (output,) = pipe.generate([prompts[2]], SamplingParams(max_new_tokens=8, ignore_eos=True))
    chunks += list(zip_longest(first, second))
    for prompt, stream in zip(prompts, zip(*chunks, strict=True), strict=False):
        assert [token for chunk in stream if chunk for token in chunk.tokens] == greedy_text(prompt, 20, True)
        assert [chunk.finish_reason for chunk in stream] == [None] * 19 + ["length"]
    assert output.tokens == greedy_text(prompts[2], 8, True)
    assert_idle(pipe)


def test_an_abandoned_stream_gives_its_pages_back() -> None:
    pipe, prompts = new_pipeline(), prompts_of(200, 40)
    stream, other = pipe.stream(prompts[0], GREEDY), pipe.stream(prompts[1], GREEDY)
    next(stream), next(other)
    stream.close()  # type: ignore[attr-defined]
    assert len(pipe.cache.request_ids) == 1
    assert sum(len(chunk.tokens) for chunk in other) == 19
    assert_idle(pipe)


def test_a_stream_that_never_began_takes_nothing() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(20)
    del_me = pipe.stream(prompt, GREEDY)
    del del_me
    pipe.generate([prompt], GREEDY)
    assert_idle(pipe)
    with pytest.raises(InputError, match="outside the vocabulary"):
        pipe.stream([VOCAB_SIZE], GREEDY)  # at once, not with the first token


def test_a_stream_may_be_left_after_the_pipeline_is_closed() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(20)
    stream = pipe.stream(prompt, GREEDY)
    next(stream)
    engine = pipe.engine
    pipe.close()
    stream.close()  # type: ignore[attr-defined]
    assert not engine.scheduler.has_work


def test_a_cancelled_request_leaves_those_that_run_and_wait_alone() -> None:
    prompts, cancelled = prompts_of(*range(100, 400, 30)), (1, 4, 9)
    pipe = new_pipeline(TINY, max_length=600, max_batch_tokens=100)
    requests = pipe.submit(prompts, GREEDY)
    for _ in range(5):
        pipe.engine.step()
    for i in cancelled:
        pipe.engine.cancel(requests[i])
        pipe.engine.cancel(requests[i])  # twice is once
        pipe.cache.check()
    for i in set(range(10)) - set(cancelled):
        assert pipe.finish(requests[i]).tokens == greedy_text(prompts[i], 20, True)
    assert_idle(pipe)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_step_that_fails_leaves_no_request_behind_and_hurts_no_other(error: BaseException) -> None:
    pipe, prompts = new_pipeline(max_batch_tokens=100), prompts_of(30, 250, 5)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3)
    expected = [output.tokens for output in one_by_one(prompts, [params] * 3)]
    stream = pipe.stream(prompts[0], params)
    first = next(stream)
    assert isinstance(pipe.model, FakeModel)
    pipe.model.failures.append(error)
    with pytest.raises(type(error)):
        pipe.generate(prompts[1:], params)
    assert len(pipe.cache.request_ids) == 1
    assert [output.tokens for output in pipe.generate(prompts[1:], params)] == expected[1:]
    assert [token for chunk in (first, *stream) for token in chunk.tokens] == expected[0]
    assert_idle(pipe)


def test_logits_without_a_likeliest_token_are_an_error_and_lose_nobodys_random_numbers() -> None:
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3)
    pipe, prompts = new_pipeline(), [*prompts_of(30, 40), [5, 63]]
    expected = [output.tokens for output in one_by_one(prompts, [params] * 3)]
    streams = [pipe.stream(prompt, params) for prompt in prompts[:2]]
    chunks = [[next(stream)] for stream in streams]
    assert isinstance(pipe.model, FakeModel)
    pipe.model.nan_after = 63
    with pytest.raises(FloatingPointError):
        pipe.generate([prompts[2]], params)
    pipe.model.nan_after = None
    for tokens, stream, begun in zip(expected, streams, chunks, strict=False):
        assert [token for chunk in (*begun, *stream) for token in chunk.tokens] == tokens
    assert_idle(pipe)


@pytest.mark.parametrize("caching", [False, True], ids=["plain", "prefix-caching"])
@pytest.mark.parametrize("budget", [1, 50, 512])
def test_logits_of_all_positions_beside_other_work(budget: int, caching: bool) -> None:
    pipe = new_pipeline(max_batch_tokens=budget, enable_prefix_caching=caching)
    prompts = prompts_of(300, 300, 1, 128, 7)
    stream = pipe.stream(prompts[0], GREEDY)
    begun = next(stream)
    for _ in range(2):  # the second time, all of it is in the cache
        for prompt, logits in zip(prompts, pipe.logits(prompts), strict=True):
            assert logits.dtype == np.float32 and np.array_equal(logits, logits_of(fingerprints(prompt)))
    assert [token for chunk in (begun, *stream) for token in chunk.tokens] == greedy_text(prompts[0], 20, True)
    assert_idle(pipe)


@pytest.mark.parametrize("caching", [False, True], ids=["plain", "prefix-caching"])
def test_logits_of_a_preempted_prompt(caching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.text_generation, "LOGITS_BYTES", 20 * 4 * VOCAB_SIZE * 8)
    pipe = new_pipeline({"full": 5, "sliding": 8}, max_length=600, enable_prefix_caching=caching)
    older, prompt = prompts_of(120, 400)
    stream = pipe.stream(older, SamplingParams(max_new_tokens=30, ignore_eos=True))
    next(stream)
    (logits,) = pipe.logits([prompt])  # halfway through, the older request needs one of its pages
    assert pipe.engine.scheduler.num_preemptions == 1
    assert np.array_equal(logits, logits_of(fingerprints(prompt)))
    list(stream)
    assert_idle(pipe)


def test_the_logits_of_a_step_stay_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.text_generation, "LOGITS_BYTES", 10 * 4 * VOCAB_SIZE * 8)
    pipe = new_pipeline()
    stream = pipe.stream(prompts_of(100)[0], GREEDY)
    next(stream)
    pipe.logits(prompts_of(200, 33))
    assert max(row.count for step in steps_of(pipe)[1:] for row in step) == 10
    assert any(len(step) == 3 for step in steps_of(pipe)), "the others go on meanwhile"
    list(stream)


def test_logits_of_a_prompt_as_long_as_the_limit() -> None:
    pipe = new_pipeline({"full": 2, "sliding": 4}, max_length=256)
    (prompt,) = prompts_of(256)
    assert pipe.logits([prompt])[0].shape == (256, VOCAB_SIZE)
    assert len(pipe.generate([prompt[:255]], SamplingParams(ignore_eos=True))[0].tokens) == 1
    assert_idle(pipe)
