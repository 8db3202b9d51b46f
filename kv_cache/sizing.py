"""The size of a cache: the pages that the limits of requests need, within the memory that there is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from kv_cache.params import KVCacheParams, PageGroup

OPTION = "kv_cache_memory (--kv-cache-memory)"


@dataclass(frozen=True)
class CachePlan:
    """The size of a cache.

    num_pages: by group. bytes: of all pages on all devices. num_tokens: tokens that fit into the layers that keep all
    tokens (into the smallest group, if all slide). max_length: tokens that a request may have.
    """

    num_pages: dict[str, int]
    bytes: int
    num_tokens: int
    max_length: int

    def describe(self, params: KVCacheParams) -> str:
        """Formats the plan as one line: tokens and memory, then each group's part. The printed parts add up."""
        sizes_mib = {g.name: round(self.num_pages[g.name] * g.page_bytes / 2**20, 1) for g in params.groups}
        parts = [f"{_describe_group(group)} {sizes_mib[group.name]:,.1f} MiB" for group in params.groups]
        total_mib = sum(sizes_mib.values())
        return f"KV cache: {self.num_tokens:,} tokens in {total_mib:,.1f} MiB ({'; '.join(parts)})"


def plan_cache(
    params: KVCacheParams,
    *,
    max_length: int,
    max_batch_size: int,
    max_step_tokens: int,
    memory_bytes: int | None,
    available_bytes: int,
    share: float = 0.5,
    may_shorten: bool = False,
    remedy: str | None = None,
) -> CachePlan:
    """Plans pages for `max_batch_size` requests of `max_length` tokens, or for as many as memory allows.

    Args:
        params: The page groups.
        max_length: Tokens that a request may have.
        max_batch_size: Requests that run at once.
        max_step_tokens: The most tokens that a step adds to a request.
        memory_bytes: Memory of the cache; None: `share` of available_bytes.
        available_bytes: Free memory.
        share: The part of the free memory that the cache may take.
        may_shorten: Whether max_length may become shorter, so that one request fits.
        remedy: What to do if one does not fit in the share; None: set memory_bytes.

    Raises:
        ValueError: Not even one request of max_length fits (with may_shorten: of one page).
    """
    bound = int(share * available_bytes) if memory_bytes is None else memory_bytes
    one = _request_pages(params, max_length, max_step_tokens)
    if _bytes(params, one) > bound:
        fitting = _longest_fitting(params, max_length, max_step_tokens, bound)
        if not (may_shorten and fitting):
            limit = _limit(remedy) if memory_bytes is None else (f"{OPTION} allows", "raise it")
            raise ValueError(_too_small(max_length, fitting, _bytes(params, one), bound, *limit))
        max_length, one = fitting, _request_pages(params, fitting, max_step_tokens)
    num_pages = _scale(params, one, max_batch_size, bound)
    keeps_all = [group for group in params.groups if group.window is None] or params.groups
    num_tokens = min(num_pages[group.name] for group in keeps_all) * params.page_size
    return CachePlan(num_pages, _bytes(params, num_pages), num_tokens, max_length)


def format_bytes(num_bytes: int) -> str:
    """Formats a size for people, like '1.5 GiB'."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(0, num_bytes.bit_length() - 1) // 10, len(units) - 1)
    return f"{num_bytes / 1024**power:.4g} {units[power]}"


def _describe_group(group: PageGroup) -> str:
    layers = "1 layer keeps" if group.num_layers == 1 else f"{group.num_layers} layers keep"
    return f"{layers} " + ("all tokens," if group.window is None else f"the last {group.window:,} of a request,")


def _request_pages(params: KVCacheParams, num_tokens: int, max_step_tokens: int) -> dict[str, int]:
    return {group.name: group.max_pages(num_tokens, max_step_tokens) for group in params.groups}


def _bytes(params: KVCacheParams, num_pages: Mapping[str, int]) -> int:
    return sum(num_pages[group.name] * group.page_bytes for group in params.groups)


def _longest_fitting(params: KVCacheParams, max_length: int, max_step_tokens: int, bound: int) -> int:
    """Tokens of the longest request below max_length, in whole pages, that fits alone; 0 if none does."""
    lengths = range(params.page_size, max_length, params.page_size)
    sizes = [_bytes(params, _request_pages(params, length, max_step_tokens)) for length in lengths]
    return bisect_right(sizes, bound) * params.page_size


def _scale(params: KVCacheParams, one: Mapping[str, int], max_batch_size: int, bound: int) -> dict[str, int]:
    """Pages of one request, and the same share of the others' in all groups: all of them, if within the bound."""
    one_bytes = _bytes(params, one)
    others_bytes = one_bytes * (max_batch_size - 1)
    room = min(others_bytes, bound - one_bytes)
    return {name: count + count * (max_batch_size - 1) * room // max(1, others_bytes) for name, count in one.items()}


def _limit(remedy: str | None) -> tuple[str, str]:
    return "its share of the free memory is", remedy or f"set {OPTION}"


def _too_small(max_length: int, fitting: int, needed: int, bound: int, limit: str, remedy: str) -> str:
    advice = f" or set max_length (--max-length) to at most {fitting}" if fitting else ""
    return (
        f"one request of {max_length} tokens needs {format_bytes(needed)} of KV cache, "
        f"but {limit} {format_bytes(bound)}: {remedy}{advice}"
    )
