"""The thread that owns an engine: it takes requests at any time and never waits for their readers."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_model import FakeModel, assert_idle, greedy_text, new_pipeline, prompts_of

from pipelines.context import TextContext
from pipelines.engine.thread import EngineThread
from pipelines.sampling.params import SamplingParams
from pipelines.text_generation import TextGenerationPipeline

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)


class Running:
    """A pipeline whose engine has a thread; waits for the ends of requests."""

    def __init__(self, **settings: Any) -> None:
        self.pipe: TextGenerationPipeline = new_pipeline(**settings)
        self.failures: list[Exception] = []
        self._ended = threading.Condition()
        self.thread = EngineThread(self.pipe.engine, self._on_chunk, self.failures.append)
        self.thread.start()

    def _on_chunk(self, context: TextContext) -> None:
        if context.is_finished:
            with self._ended:
                self._ended.notify_all()

    def submit(self, prompt: list[int], params: SamplingParams = GREEDY) -> TextContext:
        context = self.pipe.requests.generation(prompt, params)
        self.thread.submit(context)
        return context

    def wait(self, *contexts: TextContext) -> None:
        with self._ended:
            assert self._ended.wait_for(lambda: all(context.is_finished for context in contexts), timeout=30)


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running(max_batch_tokens=64)
    yield running
    running.thread.stop()
    assert not running.thread.is_alive
    assert_idle(running.pipe)


def tokens_of(context: TextContext) -> list[int]:
    return [token for chunk in context.chunks for token in chunk.tokens]


def test_requests_from_many_threads_get_what_they_get_alone(running: Running) -> None:
    prompts = prompts_of(*range(5, 200, 13))
    contexts: dict[int, TextContext] = {}
    threads = [
        threading.Thread(target=lambda i=i: contexts.update({i: running.submit(prompts[i])}))
        for i in range(len(prompts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.wait(*contexts.values())
    assert {i: tokens_of(context) for i, context in contexts.items()} == {
        i: greedy_text(prompt, 20, True) for i, prompt in enumerate(prompts)
    }


def test_it_waits_without_work_and_wakes_up(running: Running) -> None:
    (prompt,) = prompts_of(10)
    for _ in range(20):
        context = running.submit(prompt)
        running.wait(context)
        assert tokens_of(context) == greedy_text(prompt, 20, True)


def test_cancelled_requests_end_and_free_their_pages(running: Running) -> None:
    rng = random.Random(0)
    endless = SamplingParams(ignore_eos=True)
    contexts = [running.submit(prompt, endless) for prompt in prompts_of(*range(5, 150, 5))]
    rng.shuffle(contexts)
    for context in contexts:
        running.thread.cancel(context)
    running.wait(*contexts)
    assert {context.finish_reason for context in contexts} <= {"cancelled", "length"}


def test_a_failure_of_the_engine_itself_ends_every_request_and_it_goes_on(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, plan = RuntimeError("a defect"), running.pipe.engine.scheduler.plan

    def broken() -> Any:
        monkeypatch.setattr(running.pipe.engine.scheduler, "plan", plan)
        raise error

    monkeypatch.setattr(running.pipe.engine.scheduler, "plan", broken)
    (prompt,) = prompts_of(10)
    context = running.submit(prompt)
    running.wait(context)
    assert (context.finish_reason, context.error, running.failures) == ("error", error, [error])
    again = running.submit(prompt)
    running.wait(again)
    assert tokens_of(again) == greedy_text(prompt, 20, True)


@pytest.mark.parametrize("timeout_s", [0.0, 30.0])
def test_stopping_lets_requests_finish_for_a_while_and_cancels_the_rest(timeout_s: float) -> None:
    running = Running()
    model = running.pipe.model
    assert isinstance(model, FakeModel)
    started = threading.Event()
    model.during_step = started.set
    context = running.submit(prompts_of(10)[0], SamplingParams(max_new_tokens=300, ignore_eos=True))
    assert started.wait(30)
    is_finished = running.thread.stop(timeout_s)
    assert context.finish_reason == ("length" if is_finished else "cancelled")
    assert is_finished or not timeout_s
    assert not running.thread.is_alive
    assert_idle(running.pipe)
