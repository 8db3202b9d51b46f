"""The engine: the same text whatever the batch, the chunks, the pages and the other requests."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from typing import Any

import fake_model
import numpy as np
import pytest
from fake_model import (
    EOS,
    IMAGE,
    IMAGE_TOKENS,
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
from late_device import LateSampler
from marks import slow

import pipelines.requests
import pipelines.text_generation
from pipelines.context import ImageSpan, TextContext
from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams
from pipelines.text.prompts import EncodedPrompt
from pipelines.text_generation import GenerationOutput, TextGenerationPipeline

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
TINY = {"full": 6, "sliding": 6}


def image_prompt(num_before: int, num_after: int, number: int = 0) -> EncodedPrompt:
    """Text, an image, text."""
    tokens = [1] * num_before + [IMAGE] * IMAGE_TOKENS + [2] * num_after
    image = ImageSpan(num_before, num_before + IMAGE_TOKENS, np.zeros(1), bytes([number] * 32))
    return EncodedPrompt(tokens, (image,))


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


@pytest.fixture(params=["alone", "overlapped"])
def pipelines_of_both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes `new_pipeline` one whose steps overlap, on a simulated device, in the second run of a test."""
    made = []

    def new_late_pipeline(num_pages: dict[str, int] | None = None, **settings: Any) -> TextGenerationPipeline:
        made.append(fake_model.new_pipeline(num_pages, LateSampler(), **settings))
        return made[-1]

    if request.param == "overlapped":
        monkeypatch.setitem(globals(), "new_pipeline", new_late_pipeline)
    yield
    if not any(word in request.node.name for word in ("fails", "raises")):
        assert not any(pipe.engine.stats.num_failed_steps for pipe in made)


in_both_kinds = pytest.mark.usefixtures("pipelines_of_both_kinds")


@cache
def random_work_alone(seed: int) -> list[GenerationOutput]:
    return one_by_one(*random_work(seed))


def one_by_one(prompts: list[list[int]], params: list[SamplingParams]) -> list[GenerationOutput]:
    pipe = fake_model.new_pipeline(max_batch_size=1)
    return [pipe.generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]


@in_both_kinds
def test_the_text_is_the_models_and_ends_where_it_ends_it() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(5)
    expected = greedy_text(prompt, 500)
    assert expected[-1] == EOS and len(expected) < 500
    (output,) = pipe.generate([prompt], SamplingParams())
    assert output == GenerationOutput(text_of(expected), expected, "stop", num_prompt_tokens=5)
    assert_idle(pipe)


@in_both_kinds
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


@in_both_kinds
def test_each_token_is_computed_once_in_its_place() -> None:
    pipe = new_pipeline(max_batch_tokens=50)
    requests = pipe.submit(prompts_of(1, 60, 300), GREEDY)
    for request in requests:
        pipe.finish(request)
    for request in requests:
        rows = [row for step in steps_of(pipe) for row in step if row.request_id == request.request_id]
        positions = [position for row in rows for position in range(row.start, row.start + row.count)]
        assert positions == list(range(request.num_prompt_tokens + 19))


@in_both_kinds
@pytest.mark.parametrize(
    "caching", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "prefix-caching"]
)
@pytest.mark.parametrize(("rows", "budget"), [(3, 5), *slow((3, 256), (8, 20), (8, 100), (8, 512))])
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


@in_both_kinds
def test_a_cached_prefix_is_not_computed_again() -> None:
    plain, caching = new_pipeline(), new_pipeline(enable_prefix_caching=True)
    (prompt,) = prompts_of(300)
    for pipe in (plain, caching):
        first, second = (pipe.generate([prompt], GREEDY)[0].tokens for _ in range(2))
        assert first == second == greedy_text(prompt, 20, True)
        assert_idle(pipe)
    starts = [min(row.start for step in steps_of(pipe)[20:] for row in step) for pipe in (plain, caching)]
    assert starts == [0, 256]


@in_both_kinds
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


@in_both_kinds
def test_an_abandoned_stream_gives_its_pages_back() -> None:
    pipe, prompts = new_pipeline(), prompts_of(200, 40)
    stream, other = pipe.stream(prompts[0], GREEDY), pipe.stream(prompts[1], GREEDY)
    next(stream), next(other)
    stream.close()  # type: ignore[attr-defined]
    assert pipe.cache.num_requests == 1
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
    assert not engine.has_work


@in_both_kinds
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


def model_of(pipe: TextGenerationPipeline) -> FakeModel:
    assert isinstance(pipe.model, FakeModel)
    return pipe.model


SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3)


def test_a_step_that_is_interrupted_leaves_no_request_behind_and_hurts_no_other() -> None:
    pipe, prompts = new_pipeline(max_batch_tokens=100), prompts_of(30, 250, 5)
    expected = [output.tokens for output in one_by_one(prompts, [SAMPLED] * 3)]
    stream = pipe.stream(prompts[0], SAMPLED)
    first = next(stream)
    model_of(pipe).failures.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipe.generate(prompts[1:], SAMPLED)
    assert pipe.cache.num_requests == 1
    assert [output.tokens for output in pipe.generate(prompts[1:], SAMPLED)] == expected[1:]
    assert [token for chunk in (first, *stream) for token in chunk.tokens] == expected[0]
    assert_idle(pipe)


@in_both_kinds
def test_a_step_that_fails_once_hurts_nobody() -> None:
    pipe, prompts = new_pipeline(max_batch_tokens=100), prompts_of(30, 250, 5)
    expected = [output.tokens for output in one_by_one(prompts, [SAMPLED] * 3)]
    contexts = pipe.submit(prompts, SAMPLED)
    pipe.engine.step()
    model_of(pipe).failures.append(RuntimeError("once"))
    assert [pipe.finish(context).tokens for context in contexts] == expected
    assert_idle(pipe)


@in_both_kinds
def test_a_model_that_always_fails_ends_every_request_and_gives_all_pages_back() -> None:
    pipe, prompts = new_pipeline(), prompts_of(30, 250, 5)
    error = RuntimeError("out of memory")
    model_of(pipe).failures += [error] * 100
    outputs = pipe.generate(prompts, SAMPLED)
    assert [(output.finish_reason, output.error) for output in outputs] == [("error", error)] * 3
    assert_idle(pipe)
    model_of(pipe).failures.clear()
    assert pipe.generate(prompts, GREEDY)[0].tokens == greedy_text(prompts[0], 20, True)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("fault", ["nan_after", "broken_after"])
def test_a_row_that_fails_ends_alone_and_the_others_commit_in_the_same_step(fault: str, params: SamplingParams) -> None:
    """A row without a likeliest token, and one that fails the step that it is in."""
    innocent = [[token for token in prompt if token != 63] for prompt in prompts_of(30, 40)]
    pipe, prompts = new_pipeline(), [innocent[0], [5, 63], innocent[1]]
    expected = [output.tokens for output in one_by_one(prompts, [params] * 3)]
    assert all(63 not in tokens for tokens in expected), "no innocent request comes to it"
    setattr(model_of(pipe), fault, 63)
    outputs = pipe.generate(prompts, params)
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert isinstance(outputs[1].error, FloatingPointError if fault == "nan_after" else RuntimeError)
    assert [output.tokens for output in outputs] == [expected[0], [], expected[2]]
    num_rows = sum(len(step) for step in steps_of(pipe))
    assert num_rows <= 2 * 20 + 1, "innocent rows are computed once"
    assert_idle(pipe)


@in_both_kinds
def test_a_sampler_that_raises_ends_its_request_alone() -> None:
    pipe, prompts = new_pipeline(), prompts_of(30, 40)
    contexts = pipe.submit(prompts, SAMPLED)
    error = ValueError("no")

    def broken(logits_V: object) -> None:
        raise error

    contexts[0].consumer.sampler.processed = broken  # type: ignore[union-attr, method-assign]
    outputs = [pipe.finish(context) for context in contexts]
    assert [(output.finish_reason, output.error) for output in outputs] == [("error", error), ("length", None)]
    assert outputs[1].tokens == one_by_one(prompts, [SAMPLED] * 2)[1].tokens
    assert_idle(pipe)


def test_a_cancelled_request_has_an_output() -> None:
    pipe, prompts = new_pipeline(), prompts_of(30, 40)
    started, waiting = pipe.submit(prompts, GREEDY)
    for _ in range(3):
        pipe.engine.step()
    for context in (started, waiting):
        pipe.cancel(context)
        pipe.cancel(context)  # twice is once
    outputs = [pipe.finish(context) for context in (started, waiting)]
    assert [output.finish_reason for output in outputs] == ["cancelled", "cancelled"]
    assert outputs[0].tokens == greedy_text(prompts[0], 3, True)
    assert [chunk.finish_reason for chunk in started.chunks] == [None] * 3 + ["cancelled"]
    assert_idle(pipe)


def test_a_finished_request_stays_finished_when_it_is_cancelled() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(30)
    (context,) = pipe.submit([prompt], GREEDY)
    output = pipe.finish(context)
    pipe.cancel(context)
    assert context.finish_reason == output.finish_reason == "length"


@in_both_kinds
@pytest.mark.parametrize("during", ["step", "sampling"])
def test_cancelling_inside_a_step_takes_effect_after_it(during: str) -> None:
    """The garbage collector may do that: it closes an abandoned stream at any time."""
    pipe, prompts = new_pipeline(), prompts_of(30, 40, 50)
    streams = [pipe.stream(prompt, SAMPLED) for prompt in prompts]
    for stream in streams:
        next(stream)
    contexts = list(pipe.engine.scheduler.running)

    def cancel() -> None:
        for context in contexts[:2]:
            pipe.cancel(context)
        model_of(pipe).during_step = lambda: None

    if during == "step":
        model_of(pipe).during_step = cancel
    else:
        consumer = contexts[0].consumer
        take = consumer.sampler.take  # type: ignore[union-attr]
        consumer.sampler.take = lambda choice: (cancel(), take(choice))[1]  # type: ignore[union-attr, method-assign, func-returns-value]
    expected = one_by_one(prompts, [SAMPLED] * 3)[2].tokens
    assert [token for chunk in streams[2] for token in chunk.tokens] == expected[1:]
    assert [context.finish_reason for context in contexts] == ["cancelled", "cancelled", "length"]
    assert_idle(pipe)


@in_both_kinds
def test_submitting_and_cancelling_from_other_threads() -> None:
    pipe, prompts = new_pipeline(TINY, max_length=600, max_batch_tokens=64), prompts_of(*range(20, 300, 7))
    expected = [greedy_text(prompt, 20, True) for prompt in prompts]
    submitted: list[tuple[int, TextContext]] = []
    is_over = threading.Event()

    def submit(numbers: range) -> None:
        rng = random.Random(numbers[0])
        for number in numbers:
            (context,) = pipe.submit([prompts[number]], GREEDY)
            submitted.append((number, context))
            if rng.random() < 0.3:
                pipe.cancel(rng.choice(submitted)[1])

    def run() -> None:
        while not is_over.is_set() or pipe.engine.has_work:
            pipe.engine.step()

    runner = threading.Thread(target=run)
    threads = [threading.Thread(target=submit, args=(range(i, len(prompts), 4),)) for i in range(4)]
    for thread in (runner, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    runner.join()
    assert len(submitted) == len(prompts)
    for number, context in submitted:
        tokens = [token for chunk in context.chunks for token in chunk.tokens]
        assert context.finish_reason == ("cancelled" if len(tokens) < 20 else "length")
        assert tokens == expected[number][: len(tokens)]
    assert_idle(pipe)


def test_a_step_without_work_does_nothing() -> None:
    pipe = new_pipeline()
    pipe.engine.step()
    assert not steps_of(pipe) and pipe.engine.stats.num_steps == 0


def test_a_waiting_request_is_hashed_once() -> None:
    """At 100,000 tokens a hash takes milliseconds, and a request may wait for thousands of steps."""
    pipe = new_pipeline({"full": 4, "sliding": 8}, max_length=512, enable_prefix_caching=True)
    contexts = pipe.submit(prompts_of(400, 401), SamplingParams(max_new_tokens=100, ignore_eos=True))
    pipe.engine.step()
    waiting = contexts[1]
    assert waiting.page_hashes is not None
    before = waiting.page_hashes.hashes
    assert len(before) == 3
    extend = waiting.page_hashes.extend
    waiting.page_hashes.extend = lambda tokens: pytest.fail("hashed again")  # type: ignore[method-assign]
    for _ in range(50):
        pipe.engine.step()
    waiting.page_hashes.extend = extend  # type: ignore[method-assign]
    assert waiting.num_computed_tokens == 0 and waiting.page_hashes.hashes is before
    assert pipe.finish(waiting).finish_reason == "length"
    pipe.finish(contexts[0])
    assert_idle(pipe)


def test_a_request_tells_how_much_of_its_prompt_was_cached() -> None:
    pipe, (prompt,) = new_pipeline(enable_prefix_caching=True), prompts_of(300)
    contexts = []
    for _ in range(2):
        contexts += pipe.submit([prompt], GREEDY)
        pipe.finish(contexts[-1])
    assert [context.num_cached_tokens for context in contexts] == [0, 256]


@in_both_kinds
def test_requests_with_other_salts_share_no_prefix() -> None:
    pipe, (prompt,) = new_pipeline(enable_prefix_caching=True), prompts_of(300)
    for salt, num_reused in ((None, 0), ("a", 0), ("a", 256), ("b", 0), (None, 256)):
        num_steps = len(steps_of(pipe))
        params = SamplingParams(max_new_tokens=2, ignore_eos=True, cache_salt=salt)
        assert pipe.generate([prompt], params)[0].tokens == greedy_text(prompt, 2, True)
        assert steps_of(pipe)[num_steps][0].start == num_reused


@pytest.mark.parametrize("budget", [1, 50, 512])
def test_log_probabilities_of_a_prompt(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slab by slab, preempted on the way, beside other work, with its prefix in the cache or not."""
    monkeypatch.setattr(pipelines.requests, "STEP_LOGITS_BYTES", 20 * 4 * VOCAB_SIZE * 8)
    pipe = new_pipeline({"full": 5, "sliding": 8}, max_length=600, max_batch_tokens=budget, enable_prefix_caching=True)
    older, prompt = prompts_of(120, 400)
    stream = pipe.stream(older, SamplingParams(max_new_tokens=30, ignore_eos=True))
    next(stream)
    wanted = SamplingParams(max_new_tokens=3, ignore_eos=True, prompt_logprobs=2, logprobs=0)
    for _ in range(2):
        (output,) = pipe.generate([prompt], wanted)
        logits = logits_of(fingerprints(prompt)).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(prompt) - 1
        for position, entry in enumerate(output.prompt_logprobs):
            assert entry.token_id == prompt[position + 1]
            assert entry.logprob == pytest.approx(logprobs[position, entry.token_id], abs=1e-5)
            assert [token for token, _ in entry.top] == np.argsort(-logprobs[position])[:2].tolist()
        assert output.tokens == greedy_text(prompt, 3, True)
    assert max(row.count for step in steps_of(pipe)[3:] for row in step) <= 20
    list(stream)
    assert_idle(pipe)


@in_both_kinds
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


@in_both_kinds
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "prefix-caching"])
def test_logits_of_a_preempted_prompt(caching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.requests, "STEP_LOGITS_BYTES", 20 * 4 * VOCAB_SIZE * 8)
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
    monkeypatch.setattr(pipelines.requests, "STEP_LOGITS_BYTES", 10 * 4 * VOCAB_SIZE * 8)
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


def test_logits_that_would_take_too_much_memory_are_refused_and_come_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.text_generation, "MAX_LOGITS_BYTES", 100 * 4 * VOCAB_SIZE)
    monkeypatch.setattr(pipelines.requests, "STEP_LOGITS_BYTES", 30 * 4 * VOCAB_SIZE * 8)
    pipe, (prompt,) = new_pipeline(), prompts_of(101)
    with pytest.raises(InputError, match=r"25\.25 KiB, and at most 25 KiB"):
        pipe.logits([prompt])
    pipe.logits([prompt[:100]])
    slabs = [(start, slab.copy()) for start, slab in pipe.logit_slabs(prompt)]
    assert [start for start, _ in slabs] == [0, 30, 60, 90]
    assert np.array_equal(np.concatenate([slab for _, slab in slabs]), logits_of(fingerprints(prompt)))
    assert_idle(pipe)


def test_nothing_is_compiled_inside_a_step() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(5)
    pipe.submit([prompt], GREEDY)
    assert model_of(pipe).compiled == ["decoder"]
    pipe.submit([image_prompt(1, 1)], GREEDY)
    assert model_of(pipe).compiled == ["decoder", "decoder_for_images"]
    warm = new_pipeline()
    warm.warm_up()
    assert model_of(warm).compiled == ["decoder", "decoder_for_images"]


def test_an_encoded_prompt_may_be_used_again() -> None:
    """The request drops the pixels of its own images alone."""
    pipe, prompt = new_pipeline(), image_prompt(30, 5)
    first, second = (pipe.generate([prompt], GREEDY)[0].tokens for _ in range(2))
    assert first == second == greedy_text(prompt.tokens, 20, True)
    assert prompt.images[0].pixel_values is not None
    assert_idle(pipe)


@pytest.mark.parametrize("seed", range(4))
def test_random_crowds_of_text_images_cancels_and_faults(seed: int) -> None:
    """Every request ends; those that nothing happened to have the text that they get alone."""
    rng = random.Random(seed)
    pipe = new_pipeline({"full": 8, "sliding": 10}, max_length=700, max_batch_tokens=rng.choice([20, 64, 300]))
    prompts = [
        image_prompt(rng.randrange(1, 150), rng.randrange(1, 60), number) if rng.random() < 0.4 else prompt
        for number, prompt in enumerate(prompts_of(*(rng.randrange(1, 400) for _ in range(30))))
    ]
    contexts = [pipe.submit([prompt], GREEDY)[0] for prompt in prompts]
    cancelled = rng.sample(contexts, 5)
    for context in cancelled:
        for _ in range(rng.randrange(5)):
            pipe.engine.step()
        pipe.cancel(context)
        pipe.cache.check()
        model_of(pipe).failures.append(RuntimeError("now and then"))
    for prompt, context in zip(prompts, contexts, strict=True):
        tokens = prompt.tokens if isinstance(prompt, EncodedPrompt) else prompt
        output, expected = pipe.finish(context), greedy_text(tokens, 20, True)
        reasons = {"length"} if len(output.tokens) == 20 else {"cancelled", "error"}
        assert output.finish_reason in reasons and output.tokens == expected[: len(output.tokens)]
    assert sum(context.finish_reason == "length" for context in contexts) >= 20
    assert_idle(pipe)
