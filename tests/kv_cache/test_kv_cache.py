"""Page tables, windows and the inputs that a graph gets."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from kv_caches import PAGE, NamedCache, extend, new_cache, page_group, text
from max import tree
from max.driver import CPU
from max.dtype import DType
from max.graph import DeviceRef

from kv_cache import KVCacheManager, KVCacheParams, PagePool, advance


@pytest.mark.parametrize("window", [1, 2, 127, 128, 129, 130, 512])
def test_a_page_is_gone_exactly_when_no_later_token_sees_it(window: int) -> None:
    group = page_group(window=window)
    for num_cached in range(1200):
        first_seen = max(0, num_cached - window + 1)  # the next token's position is num_cached
        num_skipped = group.num_skipped_pages(num_cached)
        assert num_skipped * PAGE <= first_seen < (num_skipped + 1) * PAGE
    assert page_group().num_skipped_pages(10**6) == 0


@pytest.mark.parametrize("window", [1, 128, 129, 512, 640])
@pytest.mark.parametrize("step", [1, 7, 128, 129, 500])
def test_max_pages_is_an_upper_bound_and_is_reached_within_a_page(window: int, step: int) -> None:
    group = page_group(window=window)
    held = [group.num_pages(c + step) - group.num_skipped_pages(c) for c in range(5000)]
    assert max(held) == group.max_pages(10**6, step)
    assert group.max_pages(100, step) == 1
    assert page_group().max_pages(1000, step) == 8


@pytest.mark.parametrize("window", [200, 512])
def test_sliding_pages_do_not_grow_with_depth(window: int) -> None:
    cache = new_cache(full=40, sliding=8, window=window)
    cache.admit("a", [])
    extend(cache, "a", text(40 * PAGE))
    assert cache.num_free("full") == 0
    assert cache.num_free("sliding") >= 2
    assert not cache.reserve("a", 1)


def test_reserve_takes_in_all_groups_or_in_none() -> None:
    for full, sliding in ((3, 9), (9, 3)):
        cache = new_cache(full, sliding, window=2000)
        cache.admit("a", [])
        assert not cache.reserve("a", 3 * PAGE + 1)
        assert (cache.num_free("full"), cache.num_free("sliding")) == (full, sliding)
        assert cache.reserve("a", 3 * PAGE)
        assert cache.reserve("a", 3 * PAGE)  # the same room, not more
        cache.check()
        assert cache.usage == 1.0


def test_more_than_was_reserved_is_refused() -> None:
    cache = new_cache()
    cache.admit("a", [])
    assert cache.reserve("a", 5)
    with pytest.raises(ValueError, match="allocated room for 128 tokens, not 129"):
        cache.write("a", [0] * 129)
    with pytest.raises(ValueError, match="room"):
        cache.inputs(["a"], [129])


def test_a_page_can_not_be_released_twice_nor_hashed_twice() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    assert pages is not None
    pool.set_page_hash(pages[0], b"x")
    with pytest.raises(ValueError, match="twice"):
        pool.set_page_hash(pages[0], b"y")
    pool.release(pages)
    with pytest.raises(ValueError, match="no table holds"):
        pool.release(pages)


def test_check_finds_what_is_wrong() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    assert pages is not None
    pool.check([pages])
    with pytest.raises(AssertionError, match="references"):
        pool.check([])
    with pytest.raises(AssertionError, match="references"):
        pool.check([pages, pages])
    with pytest.raises(AssertionError, match="does not exist"):
        pool.check([pages, [7]])


def test_capacity_is_a_length_that_fits_and_one_more_token_does_not() -> None:
    cache = new_cache(full=9, sliding=5, window=200)  # 5 pages: the window and a step of 128
    assert cache.capacity_tokens(128) == 9 * PAGE
    cache.admit("a", [])
    extend(cache, "a", text(9 * PAGE), step=128)
    assert not cache.reserve("a", 1)
    assert new_cache(full=9, sliding=3, window=200).capacity_tokens(128) == 3 * PAGE
    only_sliding = KVCacheParams((page_group("sliding", 200),))
    assert KVCacheManager(only_sliding, {"sliding": 5}, [CPU()]).capacity_tokens(128) == sys.maxsize


def test_runtime_inputs_count_from_the_first_page_kept() -> None:
    cache = new_cache(window=200, caching=False)
    for request_id, length in (("a", 700), ("b", 20)):
        cache.admit(request_id, [])
        extend(cache, request_id, text(length))
    assert cache.reserve("a", 3) and cache.reserve("b", 1)
    inputs = cache.inputs(["a", "b"], [3, 1])
    full, sliding = inputs["full"][0], inputs["sliding"][0]
    assert full.cache_lengths.to_numpy().tolist() == [700, 20]
    assert sliding.cache_lengths.to_numpy().tolist() == [700 - 3 * PAGE, 20]  # 700 - 199 = 501: three pages are gone
    assert (full.max_cache_length.to_numpy()[0], sliding.max_cache_length.to_numpy()[0]) == (703, 703 - 3 * PAGE)
    assert full.max_prompt_length.to_numpy().tolist() == [3]
    assert full.attention_dispatch_metadata.to_numpy().tolist() == [2, 3, 1, 703]
    assert full.page_stride.to_numpy().tolist() == [2 * PAGE * 8]
    rows = full.lookup_table.to_numpy()
    assert rows.shape == (2, 8 + 16) and rows.dtype == np.uint32
    held = [*rows[0, :6], rows[1, 0]]
    assert len(set(held)) == 7 and not rows[0, 6:].any() and not rows[1, 1:].any()


def test_inputs_match_the_symbolic_ones() -> None:
    devices = (DeviceRef.CPU(), DeviceRef.CPU())
    params = KVCacheParams(
        (
            page_group("sliding", 200, num_layers=3, num_kv_heads=4, devices=devices, dtype=DType.bfloat16),
            page_group("full", num_layers=2, devices=devices, dtype=DType.bfloat16),
        )
    )
    cache = NamedCache(params, {"sliding": 3, "full": 5}, [CPU(), CPU()])
    cache.admit("a", [])
    assert cache.reserve("a", 300)
    types, buffers = params.symbolic_inputs(), cache.inputs(["a"], [300])
    flat_types, flat_buffers = tree.leaves(types), tree.leaves(buffers)
    assert [t.dtype for t in flat_types] == [b.dtype for b in flat_buffers]
    for declared, buffer in zip(flat_types, flat_buffers, strict=True):
        sizes = [str(dim) for dim in declared.shape]
        fixed = [(size, str(n)) for size, n in zip(sizes, buffer.shape, strict=True) if size.isdigit()]
        assert all(size == n for size, n in fixed), (declared, buffer.shape)
    assert list(buffers["sliding"][1].kv_blocks.shape) == [3, 2, 3, PAGE, 2, 8]
    assert list(buffers["full"][1].kv_blocks.shape) == [5, 2, 2, PAGE, 1, 8]  # one head, on both devices
    dims = {str(dim) for t in flat_types for dim in t.shape if not str(dim).isdigit()}
    assert len(dims) == 5  # pages and table width of each group, and the batch


def test_advance_is_the_next_step_over_the_same_tables() -> None:
    cache = new_cache(window=200, caching=False)
    for request_id, length in (("a", 300), ("b", 5)):
        cache.admit(request_id, [])
        extend(cache, request_id, text(length))
    assert cache.reserve("a", 4) and cache.reserve("b", 2)  # one more than this step needs
    stepped = advance(cache.inputs(["a", "b"], [3, 1]), cache.params, [3, 1])
    cache.write("a", [1, 2, 3])
    cache.write("b", [1])
    expected = cache.inputs(["a", "b"], [1, 1])
    for got, want in zip(tree.leaves(stepped), tree.leaves(expected), strict=True):
        assert got.to_numpy().tolist() == want.to_numpy().tolist()


def test_pages_are_memory_of_their_own_on_each_device() -> None:
    devices = (DeviceRef.CPU(), DeviceRef.CPU())
    cache = NamedCache(KVCacheParams((page_group(devices=devices),)), {"full": 2}, [CPU(), CPU()])
    cache.admit("a", [])
    assert cache.reserve("a", 1)
    first, second = (device.kv_blocks for device in cache.inputs(["a"], [1])["full"])
    first.to_numpy()[:] = 1
    assert not second.to_numpy().any()
    again = cache.inputs(["a"], [1])["full"][0].kv_blocks
    assert again.to_numpy().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers of page group 'full' is 0"),
        ({"window": 0}, "window"),
        ({"devices": ()}, "devices"),
        ({"page_size": 100}, "100, not a multiple of 128"),
        ({"num_kv_heads": 3, "devices": (DeviceRef.CPU(),) * 2}, "3"),
    ],
)
def test_impossible_groups_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page_group(**changes)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one page group"):
        KVCacheParams(())
    with pytest.raises(ValueError, match="distinct"):
        KVCacheParams((page_group(), page_group()))
    with pytest.raises(ValueError, match="agree"):
        KVCacheParams((page_group(), page_group("other", page_size=256)))
    params = KVCacheParams((page_group(),))
    with pytest.raises(ValueError, match="1 devices, not 2"):
        KVCacheManager(params, {"full": 1}, [CPU(), CPU()])
    with pytest.raises(ValueError, match="at least one page"):
        KVCacheManager(params, {"full": 0}, [CPU()])
