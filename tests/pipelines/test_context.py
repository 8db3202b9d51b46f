"""The state of one request, through chunks, preemption and its end."""

from __future__ import annotations

import pytest

from pipelines.context import TextContext
from pipelines.sampling.params import SamplingParams


def context(num_prompt: int = 5, params: SamplingParams | None = None) -> TextContext:
    return TextContext("a", list(range(num_prompt)), params or SamplingParams())


def test_a_prompt_is_computed_in_chunks_and_then_goes_on_token_by_token() -> None:
    request = context(5)
    request.num_scheduled = 3
    assert (request.next_chunk, request.remaining, request.completes_with_this_step) == ([0, 1, 2], 5, False)
    request.advance()
    request.num_scheduled = 2
    assert (request.next_chunk, request.remaining, request.completes_with_this_step) == ([3, 4], 2, True)
    request.advance()
    request.append(7)
    request.num_scheduled = 1
    assert (request.next_chunk, request.num_generated, request.completes_with_this_step) == ([7], 1, True)


def test_preemption_forgets_the_cache_and_not_the_tokens() -> None:
    request = context(3)
    request.num_scheduled = 3
    request.advance()
    request.append(9)
    request.num_scheduled = 1
    request.reset()
    assert (request.tokens, request.remaining, request.num_scheduled) == ([0, 1, 2, 9], 4, 0)
    assert (request.prompt_length, request.num_generated) == (3, 1)


def test_the_callers_prompt_stays_as_it_is() -> None:
    prompt = [1, 2]
    TextContext("a", prompt, SamplingParams()).append(3)
    assert prompt == [1, 2]


@pytest.mark.parametrize(
    ("params", "token", "max_length", "reason"),
    [
        (SamplingParams(), 1, 100, "stop"),
        (SamplingParams(), 8, 100, None),
        (SamplingParams(ignore_eos=True), 1, 100, None),
        (SamplingParams(stop_token_ids=(8,)), 8, 100, "stop"),
        (SamplingParams(stop_token_ids=(8,), ignore_eos=True), 8, 100, "stop"),
        (SamplingParams(max_new_tokens=2), 8, 100, "length"),
        (SamplingParams(max_new_tokens=2), 1, 100, "stop"),
        (SamplingParams(max_new_tokens=3), 8, 100, None),
        (SamplingParams(), 8, 7, "length"),
        (SamplingParams(), 8, 8, None),
        (SamplingParams(min_tokens=1), 1, 100, "stop"),
        (SamplingParams(min_tokens=2), 1, 100, None),
    ],
)
def test_why_a_request_ends_with_its_second_token(
    params: SamplingParams, token: int, max_length: int, reason: str | None
) -> None:
    request = context(5, params)
    request.append(8)
    request.append(token)
    assert request.finish_reason(token, {1, 2}, max_length) == reason


def test_the_longest_a_request_may_become() -> None:
    assert context(5).max_total_tokens(100) == 100
    assert context(5, SamplingParams(max_new_tokens=10)).max_total_tokens(100) == 15
    assert context(5, SamplingParams(max_new_tokens=10)).max_total_tokens(12) == 12
