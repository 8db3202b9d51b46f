"""The state of one request, through chunks, preemption and its end."""

from __future__ import annotations

import numpy as np
import pytest

from kv_cache import PageHashes, RequestPages
from pipelines.context import ImageSpan, TextContext
from pipelines.sampling.params import SamplingParams


def context(num_prompt: int = 5, params: SamplingParams | None = None) -> TextContext:
    return TextContext("a", list(range(num_prompt)), params or SamplingParams())


def test_a_prompt_is_computed_in_chunks_and_then_goes_on_token_by_token() -> None:
    request = context(5)
    request.pages = RequestPages({})
    request.num_scheduled_tokens = 3
    assert (request.scheduled_tokens, request.num_remaining_tokens) == ([0, 1, 2], 5)
    request.pages.num_computed_tokens = 3
    assert (request.num_computed_tokens, request.num_ready_tokens) == (3, 2)
    request.pages.num_computed_tokens = 5
    request.tokens.append(7)
    request.num_scheduled_tokens = 1
    assert (request.scheduled_tokens, request.num_output_tokens) == ([7], 1)


def test_preemption_forgets_the_cache_and_not_the_tokens() -> None:
    request = context(3)
    request.pages = RequestPages({}, num_computed_tokens=3)
    request.tokens.append(9)
    request.pages = None
    assert (request.tokens, request.num_computed_tokens, request.num_remaining_tokens) == ([0, 1, 2, 9], 0, 4)
    assert (request.num_prompt_tokens, request.num_output_tokens) == (3, 1)


def test_a_step_computes_text_up_to_an_image_or_an_image_to_its_end() -> None:
    images = [ImageSpan(2, 6, np.zeros(1), bytes(range(32))), ImageSpan(8, 12, np.zeros(1), bytes(32))]
    request = TextContext("a", [1] * 15, images=images, pages=RequestPages({}))
    ready = {0: 2, 1: 1, 2: 4, 4: 2, 6: 2, 8: 4, 12: 3, 14: 1}
    for done, count in ready.items():
        request.pages.num_computed_tokens = done  # type: ignore[union-attr]
        assert request.num_ready_tokens == count
        assert (request.next_image is not None) == (2 <= done < 6 or 8 <= done < 12)


def test_the_tokens_of_an_image_are_hashed_as_its_content() -> None:
    def hashes(image_hash: bytes) -> list[bytes]:
        image = ImageSpan(2, 6, np.zeros(1), image_hash)
        request = TextContext("a", [1] * 200, images=[image], page_hashes=PageHashes(128))
        request.update_page_hashes()
        assert request.page_hashes is not None
        return request.page_hashes.hashes

    assert hashes(bytes(32)) == hashes(bytes(32)) != hashes(bytes([1] * 32))


def test_the_end_of_a_request_frees_the_pixels() -> None:
    image = ImageSpan(0, 4, np.zeros(1), bytes(32))
    request = TextContext("a", [1] * 5, images=[image])
    request.finish("cancelled")
    assert image.pixel_values is None and request.is_finished


def test_the_callers_prompt_stays_as_it_is() -> None:
    prompt = [1, 2]
    TextContext("a", prompt, SamplingParams()).tokens.append(3)
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
    request.tokens += [8, token]
    assert request.finish_reason_after(token, {1, 2}, max_length) == reason


def test_the_longest_a_request_may_become() -> None:
    assert context(5).max_total_tokens(100) == 100
    assert context(5, SamplingParams(max_new_tokens=10)).max_total_tokens(100) == 15
    assert context(5, SamplingParams(max_new_tokens=10)).max_total_tokens(12) == 12
