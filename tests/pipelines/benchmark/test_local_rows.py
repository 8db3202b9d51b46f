"""The rows of a local benchmark. The fake model checks that each token is computed over what was before it."""

from __future__ import annotations

from collections import Counter

import pytest
from fake_model import VOCAB_SIZE, WINDOW, FakeModel
from kv_caches import new_cache

from pipelines.benchmark.local_rows import RowRunner, pages_needed
from pipelines.benchmark.local_settings import LocalTest
from pipelines.errors import InputError

STEP = 256


def new_runner(*tests: LocalTest, num_pages: dict[str, int] | None = None) -> tuple[RowRunner, FakeModel]:
    params = new_cache(window=WINDOW).params
    num_pages = num_pages or pages_needed(params, tests, STEP)
    model, cache = FakeModel(num_pages), new_cache(**num_pages, window=WINDOW, caching=True)
    return RowRunner(model, cache, VOCAB_SIZE, STEP), model


def computed(model: FakeModel) -> Counter[tuple[str, int]]:
    """How often each position of each row was computed since the last call."""
    counts = Counter(
        (row.request_id, position)
        for step in model.steps
        for row in step
        for position in range(row.start, row.start + row.count)
    )
    model.steps.clear()
    return counts


def positions(num_rows: int, start: int, end: int) -> Counter[tuple[str, int]]:
    return Counter((f"row {row}", position) for row in range(num_rows) for position in range(start, end))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("depth", [0, 128, 200, 1024])
@pytest.mark.parametrize("kind", ["prompt", "generate"])
def test_what_lies_before_a_test_is_computed_once(kind: str, depth: int, batch_size: int) -> None:
    test = LocalTest(kind, 300, depth, batch_size)  # type: ignore[arg-type]
    runner, model = new_runner(test)
    runner.run(test)
    assert computed(model) == positions(batch_size, 0, depth + 300)
    for _ in range(4):
        runner.run(test)
        # Whole pages are found again; what is left of the tokens before is computed again.
        assert computed(model) == positions(batch_size, depth // 128 * 128, depth + 300)


def test_the_steps_of_a_prompt_are_the_engines_and_those_before_it_do_not_count() -> None:
    test = LocalTest("prompt", 300, 130, 2)
    runner, model = new_runner(test)
    assert len(runner.run(test)) == 3  # 600 tokens in steps of 256
    assert [sum(row.count for row in step) for step in model.steps] == [256, 4, 256, 256, 88]


def test_each_step_of_generation_has_one_token_of_each_row() -> None:
    test = LocalTest("generate", 5, 0, 3)
    runner, model = new_runner(test)
    assert len(runner.run(test)) == 5
    assert [[row.count for row in step] for step in model.steps] == [[1, 1, 1]] * 5


def test_tests_at_several_depths_share_what_lies_before_them() -> None:
    tests = [LocalTest("generate", 4, depth, 2) for depth in (256, 1024)]
    runner, model = new_runner(*tests)
    runner.run(tests[0])
    computed(model)
    runner.run(tests[1])
    assert computed(model) == positions(2, 256, 1028)


def test_rows_have_tokens_of_their_own() -> None:
    """Otherwise rows would share pages, and a batch would read less memory than one of a server."""
    tests = LocalTest("generate", 1, 512, 4)
    runner, model = new_runner(tests)
    runner.run(tests)
    assert computed(model) == positions(4, 0, 513)


def test_a_cache_that_is_too_small_is_one_line_and_nothing_stays_open() -> None:
    test = LocalTest("prompt", 600, 0, 1)
    runner, model = new_runner(num_pages={"full": 4, "sliding": 8})
    with pytest.raises(InputError, match="too few pages: raise --kv-cache-memory"):
        runner.run(test)
    runner.run(LocalTest("prompt", 500, 0, 1))
    assert computed(model)
