"""How many pages a model gets: what the request limits need, within what memory allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from kv_cache.params import KVCacheParams, PageGroup


@dataclass(frozen=True)
class CachePlan:
    """The size of a cache.

    num_pages: by group. bytes: all pages on all devices. num_tokens: what fits into the layers that keep everything
    (into the smallest group, if all slide). max_length: tokens that a request may have.
    """

    num_pages: dict[str, int]
    bytes: int
    num_tokens: int
    max_length: int

    def describe(self, params: KVCacheParams) -> str:
        """One line: tokens and memory, then each group's part. The parts add up to the whole as printed."""
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
) -> CachePlan:
    """Pages for `max_batch_size` requests of `max_length` tokens, or for as many as memory allows.

    memory_bytes: what the cache may take; None: `share` of available_bytes. max_step_tokens: the most that a step adds
    to a request. may_shorten: max_length is only a wish, and becomes what fits once.

    Raises:
        ValueError: Not even one request of max_length fits (with may_shorten: of one page).
    """
    bound = int(share * available_bytes) if memory_bytes is None else memory_bytes
    one = _request_pages(params, max_length, max_step_tokens)
    if _bytes(params, one) > bound:
        fitting = _longest_fitting(params, max_length, max_step_tokens, bound)
        if not (may_shorten and fitting):
            raise ValueError(_too_small(max_length, fitting, _bytes(params, one), bound, memory_bytes is not None))
        max_length, one = fitting, _request_pages(params, fitting, max_step_tokens)
    num_pages = _scale(params, one, max_batch_size, bound)
    keeps_all = [group for group in params.groups if group.window is None] or params.groups
    num_tokens = min(num_pages[group.name] for group in keeps_all) * params.page_size
    return CachePlan(num_pages, _bytes(params, num_pages), num_tokens, max_length)


def format_bytes(num_bytes: int) -> str:
    """A size for people, like '1.5 GiB'."""
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
    """The longest request below max_length, in whole pages, that fits alone; 0 if none does."""
    lengths = range(params.page_size, max_length, params.page_size)
    sizes = [_bytes(params, _request_pages(params, length, max_step_tokens)) for length in lengths]
    return bisect_right(sizes, bound) * params.page_size


def _scale(params: KVCacheParams, one: Mapping[str, int], max_batch_size: int, bound: int) -> dict[str, int]:
    """The pages of one request, and of the others in all groups the same part: all of it, if that is within bound."""
    one_bytes = _bytes(params, one)
    others_bytes = one_bytes * (max_batch_size - 1)
    room = min(others_bytes, bound - one_bytes)
    return {name: count + count * (max_batch_size - 1) * room // max(1, others_bytes) for name, count in one.items()}


def _too_small(max_length: int, fitting: int, needed: int, bound: int, is_set: bool) -> str:
    limit = "--kv-cache-memory allows" if is_set else "its share of the free memory is"
    advice = f" or set --max-length to at most {fitting}" if fitting else ""
    return (
        f"one request of {max_length} tokens needs {format_bytes(needed)} of KV cache, "
        f"but {limit} {format_bytes(bound)}: give it more with --kv-cache-memory{advice}"
    )
