"""Steps that overlap on a simulated device: the same text as without, and a device that never waits for the host."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import FakeModel, assert_idle, greedy_text, new_pipeline, prompts_of, steps_of
from kv_caches import PAGE
from late_device import LateSampler

from pipelines.engine.consumers import NextToken
from pipelines.sampling.params import SamplingParams
from pipelines.text_generation import TextGenerationPipeline

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3)
TINY = {"full": 6, "sliding": 6}


def late_pipeline(num_pages: dict[str, int] | None = None, **settings: Any) -> TextGenerationPipeline:
    return new_pipeline(num_pages, LateSampler(), **settings)


def sampler_of(pipe: TextGenerationPipeline) -> LateSampler:
    sampler = pipe.engine._sampler
    assert isinstance(sampler, LateSampler)
    return sampler


def one_by_one(prompts: list[list[int]], params: list[SamplingParams]) -> list[Any]:
    pipe = new_pipeline(max_batch_size=1)
    return [pipe.generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]


def test_a_step_is_launched_before_the_last_one_is_collected_and_sampled_after() -> None:
    pipe, prompts = late_pipeline(), prompts_of(30, 40)
    sampler = sampler_of(pipe)

    def note_launch() -> None:
        sampler.events.append(f"launch {len(steps_of(pipe))}")

    assert isinstance(pipe.model, FakeModel)
    pipe.model.during_step = note_launch
    pipe.generate(prompts, SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=1.0, seed=1))
    expected = ["launch 0", "choose 0"]
    for step in range(1, 4):
        expected += [f"launch {step}", f"collect {step - 1}", f"choose {step}"]
    assert sampler.events == [*expected, "collect 3"], "no step is launched for a token that is surely the last"
    assert_idle(pipe)


def test_a_request_that_ends_unforeseen_wastes_one_row_and_no_text() -> None:
    pipe, (prompt,) = late_pipeline(), prompts_of(5)
    expected = greedy_text(prompt, 500)
    (output,) = pipe.generate([prompt], SamplingParams())
    assert output.tokens == expected and output.finish_reason == "stop"
    assert sum(row.count for step in steps_of(pipe) for row in step) == len(prompt) + len(expected)
    assert_idle(pipe)


@pytest.mark.parametrize("place", ["sampler", "model"])
def test_a_step_in_flight_that_fails_once_is_computed_again(place: str) -> None:
    pipe, prompts = late_pipeline(enable_prefix_caching=True), prompts_of(30, 250, 5)
    expected = [output.tokens for output in one_by_one(prompts, [SAMPLED] * 3)]
    contexts = pipe.submit(prompts, SAMPLED)
    for _ in range(4):
        pipe.engine.step()
    (sampler_of(pipe).failures if place == "sampler" else pipe.model.failures).append(RuntimeError("once"))  # type: ignore[attr-defined]
    assert [pipe.finish(context).tokens for context in contexts] == expected
    assert pipe.engine.stats.num_failed_steps == 1
    assert_idle(pipe)


def test_an_interrupted_step_loses_nothing() -> None:
    pipe, prompts = late_pipeline(), prompts_of(30, 250)
    expected = [output.tokens for output in one_by_one(prompts, [SAMPLED] * 2)]
    contexts = pipe.submit(prompts, SAMPLED)
    for _ in range(3):
        pipe.engine.step()
    sampler_of(pipe).failures.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipe.engine.step()
    assert [pipe.finish(context).tokens for context in contexts] == expected
    assert_idle(pipe)


def test_a_row_that_breaks_its_step_ends_alone() -> None:
    innocent = [[token for token in prompt if token != 63] for prompt in prompts_of(30, 40)]
    pipe, prompts = late_pipeline(), [innocent[0], [5, 63], innocent[1]]
    expected = [output.tokens for output in one_by_one(prompts, [SAMPLED] * 3)]
    pipe.model.broken_after = 63  # type: ignore[attr-defined]
    outputs = pipe.generate(prompts, SAMPLED)
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert [output.tokens for output in outputs] == [expected[0], [], expected[2]]
    assert_idle(pipe)


def test_log_probabilities_and_those_of_the_prompt() -> None:
    prompts = prompts_of(300, 20)
    wanted = SamplingParams(max_new_tokens=5, ignore_eos=True, prompt_logprobs=2, logprobs=3)
    expected = one_by_one(prompts, [wanted] * 2)
    pipe = late_pipeline(max_batch_tokens=50)
    assert pipe.generate(prompts, wanted) == expected
    assert_idle(pipe)


class Forcing:
    """A grammar that has every token below 10 followed by 11, 12, 13."""

    is_active, is_stopped = False, False

    def __init__(self) -> None:
        self.last = 0

    def prepare(self) -> None:
        pass

    def apply(self, logits_V: Any) -> None:
        raise AssertionError("it masks nothing")

    def allows(self, token: int) -> bool:
        return True

    def accept(self, token: int) -> None:
        self.last = token

    def forced_tokens(self) -> list[int]:
        return [11, 12, 13] if self.last < 10 else []


def test_tokens_that_a_grammar_forces_are_computed_in_place_of_the_samplers() -> None:
    texts = []
    for pipe in (new_pipeline(), late_pipeline()):
        params = SamplingParams(max_new_tokens=60, ignore_eos=True, temperature=1.0, seed=3)
        contexts = pipe.submit(prompts_of(20, 90), params)
        for context in contexts:
            assert isinstance(context.consumer, NextToken)
            context.consumer.constraint = Forcing()  # type: ignore[assignment]
            context.consumer.sampler._processors.append(context.consumer.constraint)  # type: ignore[arg-type]
        texts.append([pipe.finish(context).tokens for context in contexts])
        assert_idle(pipe)
        assert pipe.engine.stats.num_failed_steps == 0
    assert texts[0] == texts[1]
    assert all(text[i + 1 : i + 4] == [11, 12, 13] for text in texts[0] for i, t in enumerate(text[:-3]) if t < 10)


def test_pages_that_other_requests_get_next_are_not_harmed_by_steps_in_flight() -> None:
    """Requests end unforeseen in a cache so small that their pages are taken at once."""
    prompts = prompts_of(*range(100, 360, 13))
    expected = one_by_one(prompts, [SamplingParams(max_new_tokens=90)] * len(prompts))
    pipe = late_pipeline(TINY, max_length=TINY["full"] * PAGE, max_batch_tokens=128, enable_prefix_caching=True)
    assert pipe.generate(prompts, SamplingParams(max_new_tokens=90)) == expected
    assert {output.finish_reason for output in expected} == {"stop", "length"}
    assert pipe.engine.scheduler.num_preemptions > 0 and pipe.engine.stats.num_failed_steps == 0
    assert_idle(pipe)
