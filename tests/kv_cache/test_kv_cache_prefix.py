"""Prefix hits: the part of a request's prompt that the cache still has."""

from __future__ import annotations

import pytest
from kv_caches import PAGE, extend, new_cache, text

from kv_cache import PagePool


def test_without_prefix_caching_nothing_is_reused() -> None:
    cache = new_cache(caching=False)
    for request_id in "ab":
        assert cache.admit(request_id, text(500)) == 0
        extend(cache, request_id, text(500))
    assert cache.num_requests == 2


def test_a_hit_is_whole_pages_and_leaves_a_token_to_compute() -> None:
    cache, tokens = new_cache(), text(4 * PAGE)
    cache.admit("a", tokens)
    extend(cache, "a", tokens)
    for length, reused in (
        (4 * PAGE, 3),
        (4 * PAGE - 1, 3),
        (3 * PAGE + 1, 3),
        (3 * PAGE, 2),
        (PAGE, 0),
        (1, 0),
        (0, 0),
    ):
        assert cache.admit("b", tokens[:length]) == reused * PAGE == cache.length("b")
        cache.check()
        cache.drop("b")
    assert cache.admit("longer", [*tokens, 1]) == 4 * PAGE


def test_what_follows_a_hit_is_found_after_it_and_nowhere_else() -> None:
    cache, tokens = new_cache(), text(3 * PAGE + 1)
    cache.admit("a", tokens)
    extend(cache, "a", tokens[: 2 * PAGE])
    assert cache.admit("b", tokens) == 2 * PAGE
    extend(cache, "b", tokens[2 * PAGE :])
    assert cache.admit("the whole", tokens) == 3 * PAGE
    assert cache.admit("its end", tokens[2 * PAGE :]) == 0


@pytest.mark.parametrize("is_released", [False, True])
def test_a_hit_needs_equal_tokens_from_the_start_and_an_equal_salt(is_released: bool) -> None:
    cache, tokens = new_cache(), text(500)
    cache.admit("a", tokens, salt=b"one")
    extend(cache, "a", tokens)
    if is_released:
        cache.drop("a")
    assert cache.admit("other salt", tokens, salt=b"two") == 0
    assert cache.admit("no salt", tokens) == 0
    changed = [*tokens[:200], tokens[200] ^ 1, *tokens[201:]]
    assert cache.admit("one page", changed, salt=b"one") == PAGE
    assert cache.admit("shifted", tokens[PAGE:], salt=b"one") == 0
    assert cache.admit("all", tokens, salt=b"one") == 3 * PAGE
    cache.check()


def test_a_sliding_group_needs_its_last_window_only() -> None:
    cache, tokens = new_cache(full=40, sliding=16, window=200), text(8 * PAGE + 1)
    cache.admit("a", tokens)
    extend(cache, "a", tokens)
    cache.drop("a")
    cache.admit("b", [])
    extend(cache, "b", text(14 * PAGE, seed=1), step=14 * PAGE)  # takes all but two of the sliding pages
    cache.drop("b")
    free = cache.num_free("sliding")
    assert cache.admit("again", tokens) == 8 * PAGE
    assert free - cache.num_free("sliding") == 2
    extend(cache, "again", tokens[8 * PAGE :])


def test_a_hit_is_the_longest_prefix_on_which_the_groups_agree() -> None:
    tokens = text(8 * PAGE + 1)
    cache = new_cache(full=32, sliding=4, window=200)
    cache.admit("a", tokens)
    extend(cache, "a", tokens[: 4 * PAGE], step=PAGE)
    cache.admit("keeps the window at four", tokens[: 4 * PAGE + 1])
    assert cache.length("keeps the window at four") == 4 * PAGE
    cache.drop("a")
    cache.admit("b", tokens)
    extend(cache, "b", tokens[4 * PAGE : 5 * PAGE], step=PAGE)
    cache.drop("b")
    # Overwrite the fifth page: full layers have all five still, sliding ones the window that ends at four.
    cache.admit("c", [])
    extend(cache, "c", text(2 * PAGE, seed=2), step=2 * PAGE)
    cache.drop("c")
    assert cache.admit("d", tokens) == 4 * PAGE
    assert cache.num_free("full") == 32 - 4
    cache.check()


def test_the_beginning_of_a_prompt_outlives_its_end() -> None:
    cache, tokens = new_cache(full=8, sliding=8, window=10_000), text(6 * PAGE + 1)
    cache.admit("a", tokens)
    extend(cache, "a", tokens)
    cache.drop("a")
    cache.admit("b", [])
    assert cache.reserve("b", 5 * PAGE)
    cache.drop("b")
    assert cache.admit("again", tokens) == 3 * PAGE


def test_two_requests_that_compute_the_same_page_keep_one_each() -> None:
    cache, tokens = new_cache(), text(2 * PAGE + 1)
    cache.admit("a", tokens)
    cache.admit("b", tokens)
    extend(cache, "a", tokens)
    extend(cache, "b", tokens)
    cache.drop("a")
    assert cache.admit("c", tokens) == 2 * PAGE
    cache.check()


def test_pages_without_content_are_taken_first_and_the_latest_again() -> None:
    pool = PagePool(4)
    first, second = pool.allocate(1), pool.allocate(2)
    assert first is not None and second is not None
    pool.set_page_hash(first[0], b"kept")
    pool.release(first)
    pool.release(second)
    assert pool.allocate(2) == second
    untouched = pool.allocate(1)
    assert untouched is not None and untouched[0] not in (*first, *second)
    assert b"kept" in pool
    assert pool.allocate(1) == first and b"kept" not in pool
