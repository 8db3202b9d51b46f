"""The size of a cache within limits and memory, and its description."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kv_caches import NamedCache, page_group
from max.driver import CPU
from max.dtype import DType
from max.graph import DeviceRef

from kv_cache import CachePlan, KVCacheParams, format_bytes, plan_cache

GIB = 2**30
# Gemma 3 1B: a token costs 8 KiB in the 4 full layers, 44 KiB in the 22 sliding ones.
PARAMS = KVCacheParams(
    (
        page_group("sliding", 512, num_layers=22, head_dim=256),
        page_group("full", num_layers=4, head_dim=256),
    )
)


def plan(**changes: Any) -> CachePlan:
    settings: dict[str, Any] = {"max_length": 8192, "max_batch_size": 4, "max_step_tokens": 512}
    settings |= {"memory_bytes": None, "available_bytes": 1000 * GIB}
    return plan_cache(PARAMS, **(settings | changes))


def test_by_default_a_cache_holds_what_the_requests_need() -> None:
    sized = plan()
    assert sized.num_pages == {"full": 4 * 64, "sliding": 4 * 9}  # 511 + 512 tokens and the alignment: 9 pages
    assert sized.bytes == 128 * (4 * 64 * 8 + 4 * 9 * 44) * 1024
    assert (sized.num_tokens, sized.max_length) == (4 * 8192, 8192)
    assert plan(memory_bytes=100 * GIB) == sized
    assert plan(max_length=100).num_pages == {"full": 4, "sliding": 4}


def test_a_cache_takes_no_more_than_its_share() -> None:
    whole, one = plan(), plan(max_batch_size=1)
    for available in (one.bytes * 2, one.bytes * 3, one.bytes * 5 + 12345, whole.bytes * 2 - 1):
        sized = plan(available_bytes=available)
        assert sized.bytes <= available // 2 < sized.bytes + sum(group.page_bytes for group in PARAMS.groups)
        assert all(one.num_pages[name] <= sized.num_pages[name] <= whole.num_pages[name] for name in one.num_pages)
        assert plan(memory_bytes=available // 2, available_bytes=0) == sized
    assert plan(available_bytes=4 * one.bytes, share=0.25).num_pages == one.num_pages


def test_too_small_a_bound_names_both_sizes_and_what_to_change() -> None:
    with pytest.raises(ValueError) as refused:
        plan(memory_bytes=64 * 2**20)
    assert str(refused.value) == (
        "one request of 8192 tokens needs 113.5 MiB of KV cache, but kv_cache_memory (--kv-cache-memory) allows "
        "64 MiB: raise it or set max_length (--max-length) to at most 1792"
    )
    assert plan(memory_bytes=64 * 2**20, max_length=1792).max_length == 1792
    with pytest.raises(
        ValueError, match=r"share of the free memory is 3.906 KiB: set kv_cache_memory \(--kv-cache-memory\)$"
    ):
        plan(available_bytes=8000)


def test_a_length_that_nobody_asked_for_becomes_what_fits() -> None:
    sized = plan(memory_bytes=64 * 2**20, may_shorten=True)
    assert sized.max_length == 1792 and sized.bytes <= 64 * 2**20
    with pytest.raises(ValueError, match="1792"):
        plan(memory_bytes=64 * 2**20, max_length=1793)
    one_page = sum(group.page_bytes for group in PARAMS.groups)
    assert plan(memory_bytes=one_page, may_shorten=True).max_length == 128
    with pytest.raises(ValueError, match="one request"):
        plan(memory_bytes=one_page - 1, may_shorten=True)
    assert plan(may_shorten=True) == plan()


@pytest.mark.parametrize("memory_bytes", [130 * 2**20, 64 * 2**20, 20 * 2**20])
def test_what_was_planned_is_what_the_cache_holds(memory_bytes: int) -> None:
    sized = plan(memory_bytes=memory_bytes, may_shorten=True)
    cache = NamedCache(PARAMS, sized.num_pages, [CPU()])
    assert cache.capacity_tokens(512) >= sized.max_length
    cache.admit("a", [])
    for done in range(0, sized.max_length, 512):
        count = min(512, sized.max_length - done)
        assert cache.reserve("a", count)
        cache.write("a", [0] * count)
    cache.check()


def test_the_start_line_adds_up() -> None:
    line = plan(max_batch_size=3).describe(PARAMS)
    assert line == (
        "KV cache: 24,576 tokens in 340.5 MiB "
        "(22 layers keep the last 512 of a request, 148.5 MiB; 4 layers keep all tokens, 192.0 MiB)"
    )
    for batch in range(1, 9):
        total, *parts = (
            float(size) for size in re.findall(r"([\d.]+) MiB", plan(max_batch_size=batch).describe(PARAMS))
        )
        assert total == pytest.approx(sum(parts), abs=1e-6)


def test_all_layers_sliding() -> None:
    params = KVCacheParams((page_group("sliding", 512),))
    sized = plan_cache(
        params, max_length=10**6, max_batch_size=2, max_step_tokens=128, memory_bytes=None, available_bytes=GIB
    )
    assert sized.num_pages == {"sliding": 12} and sized.num_tokens == 12 * 128
    assert "1 layer keeps the last 512" in sized.describe(params)


def test_a_page_of_int8_has_a_scale_for_each_token_and_head() -> None:
    floats, ints = (page_group(num_kv_heads=4, head_dim=64, dtype=dtype) for dtype in (DType.float32, DType.int8))
    assert floats.page_bytes == 2 * 128 * 4 * 64 * 4
    assert ints.page_bytes == 2 * 128 * 4 * (64 + 4)


def test_a_page_counts_all_devices_and_replicated_heads() -> None:
    one = page_group(num_kv_heads=4)
    assert page_group(num_kv_heads=4, devices=(DeviceRef.GPU(0), DeviceRef.GPU(1))).page_bytes == one.page_bytes
    eight = page_group(num_kv_heads=4, devices=tuple(DeviceRef.GPU(i) for i in range(8)))
    assert eight.page_bytes == 2 * one.page_bytes


@pytest.mark.parametrize(
    ("size", "printed"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536 * 2**20, "1.5 GiB"), (3 * 2**50, "3072 TiB")],
)
def test_sizes_for_people(size: int, printed: str) -> None:
    assert format_bytes(size) == printed
