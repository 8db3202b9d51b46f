"""The KV cache of a model: which request holds which pages, and the inputs that lead a graph to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.nn.kv_cache import KVCacheInputsPerDevice

from kv_cache.inputs import StepInputs, allocate_pages, group_inputs, lookup_table, to_device
from kv_cache.pages import PagePool, PageTable, require
from kv_cache.params import KVCacheParams, PageGroup


@dataclass(eq=False)
class RequestPages:
    """The pages of one request: a table for each group.

    num_computed_tokens: tokens whose keys and values are in the pages; the only count of a request's progress.
    num_hashed_pages: leading pages that can be found by their content.
    """

    tables: dict[str, PageTable]
    num_computed_tokens: int = 0
    num_hashed_pages: int = 0


class KVCacheManager:
    """Page pools on devices, and a page table for each request and group.

    A step is: `allocate` for each row, `runtime_inputs` for all of them, the model, `commit` for each row; where steps
    overlap, `commit` follows the launch, before the next step is planned.
    num_pages: by group name. enable_prefix_caching: full pages are found again by their content.

    Raises:
        ValueError: A group has no pages, or the number of devices is not that of the parameters.
    """

    def __init__(
        self,
        params: KVCacheParams,
        num_pages: Mapping[str, int],
        devices: Sequence[Device],
        enable_prefix_caching: bool = False,
    ) -> None:
        if len(devices) != len(params.devices):
            raise ValueError(f"the KV cache is laid out for {len(params.devices)} devices, not {len(devices)}")
        self.params, self.enable_prefix_caching = params, enable_prefix_caching
        self._pools = {group.name: PagePool(num_pages[group.name]) for group in params.groups}
        self._memory: dict[str, list[Buffer]] = {
            group.name: [allocate_pages(group, num_pages[group.name], device) for device in devices]
            for group in params.groups
        }
        self._open: dict[RequestPages, None] = {}

    @property
    def num_requests(self) -> int:
        """Number of requests that hold pages."""
        return len(self._open)

    @property
    def usage(self) -> float:
        """Share of the pages that requests hold, 0 to 1, in the group where it is largest."""
        return max(1 - pool.num_free / pool.num_pages for pool in self._pools.values())

    @property
    def memory_bytes(self) -> int:
        """Bytes of all pages on all devices."""
        return sum(self._pools[group.name].num_pages * group.page_bytes for group in self.params.groups)

    def num_pages(self, group: str) -> int:
        """Number of all pages of the group."""
        return self._pools[group].num_pages

    def num_free(self, group: str) -> int:
        """Number of pages of the group that can be taken, those kept for their content included."""
        return self._pools[group].num_free

    def capacity_tokens(self, max_step_tokens: int) -> int:
        """Length of the longest request that is sure to fit when it is alone; sys.maxsize if all layers slide."""
        return min(self._capacity(group, max_step_tokens) for group in self.params.groups)

    def _capacity(self, group: PageGroup, max_step_tokens: int) -> int:
        num_pages = self._pools[group.name].num_pages
        num_tokens = num_pages * group.page_size
        return num_tokens if group.max_pages(num_tokens + 1, max_step_tokens) > num_pages else sys.maxsize

    def open(self, page_hashes: Sequence[bytes] = (), num_tokens: int = 0) -> RequestPages:
        """Registers a request, with as many of its pages as others left in the cache.

        Args:
            page_hashes: Hashes of its whole pages, in order (`PageHashes`).
            num_tokens: Tokens of the request; the last one is left to compute, for its logits.
        """
        page_size = self.params.page_size
        candidates = page_hashes[: max(0, num_tokens - 1) // page_size] if self.enable_prefix_caching else ()
        num_hit = self._num_resident(candidates)
        tables = {}
        for group in self.params.groups:
            num_skipped = group.num_skipped_pages(num_hit * page_size)
            shared = [self._pools[group.name].share(page_hash) for page_hash in candidates[num_skipped:num_hit]]
            tables[group.name] = PageTable(num_skipped, shared)
        pages = RequestPages(tables, num_hit * page_size, num_hit)
        self._open[pages] = None
        return pages

    def _num_resident(self, page_hashes: Sequence[bytes]) -> int:
        """Longest prefix, in pages, from which every group can go on; a sliding one needs its last window only."""
        longest = len(page_hashes)
        for group in self.params.groups:
            if group.window is None:
                longest = len(list(takewhile(self._pools[group.name].__contains__, page_hashes[:longest])))
        sliding = [group for group in self.params.groups if group.window is not None]
        return next(
            count
            for count in range(longest, -1, -1)
            if all(self._has_window(group, page_hashes[:count]) for group in sliding)
        )

    def _has_window(self, group: PageGroup, page_hashes: Sequence[bytes]) -> bool:
        """Whether the part of these pages that the next token sees is resident."""
        num_skipped_pages = group.num_skipped_pages(len(page_hashes) * group.page_size)
        return all(page_hash in self._pools[group.name] for page_hash in page_hashes[num_skipped_pages:])

    def can_allocate(self, wanted: Sequence[tuple[RequestPages, int]], max_step_tokens: int) -> bool:
        """Whether the free pages suffice for all of these requests together, each with its number of tokens.

        Args:
            wanted: Pages of each request, and the tokens that it will have.
            max_step_tokens: The most tokens that a step adds to one of them.
        """
        return all(
            sum(
                max(0, group.max_pages(num_tokens, max_step_tokens) - len(pages.tables[group.name].pages))
                for pages, num_tokens in wanted
            )
            <= self.num_free(group.name)
            for group in self.params.groups
        )

    def allocate(self, pages: RequestPages, num_new: int) -> bool:
        """Makes room for `num_new` more tokens, in all groups or in none; False if pages are lacking.

        Pages that left the window are freed first, in either case.
        """
        missing = {}
        for group in self.params.groups:
            table, pool = pages.tables[group.name], self._pools[group.name]
            pool.release(table.slide(group.num_skipped_pages(pages.num_computed_tokens)))
            missing[group.name] = max(0, group.num_pages(pages.num_computed_tokens + num_new) - table.end)
        if any(count > self._pools[name].num_free for name, count in missing.items()):
            return False
        for name, count in missing.items():
            pages.tables[name].pages += self._pools[name].allocate(count) or []
        return True

    def commit(self, pages: RequestPages, num_new: int, page_hashes: Sequence[bytes] = ()) -> None:
        """Counts the tokens that a step has written, or that a launched one writes before any later step reads them.

        Args:
            pages: The request.
            num_new: Tokens that are written; 0 to make pages findable whose hashes have become known.
            page_hashes: Hashes of the request's whole pages: with prefix caching, full pages are found by them.

        Raises:
            ValueError: The request has no room for so many.
        """
        self._require_room(pages, num_new)
        pages.num_computed_tokens += num_new
        if self.enable_prefix_caching:
            num_full = min(pages.num_computed_tokens // self.params.page_size, len(page_hashes))
            for position in range(pages.num_hashed_pages, num_full):
                for name, table in pages.tables.items():
                    if position >= table.num_skipped_pages:  # its tokens were known before it left the window
                        self._pools[name].set_page_hash(table.page_at(position), page_hashes[position])
            pages.num_hashed_pages = max(pages.num_hashed_pages, num_full)

    def forget_prefixes(self) -> None:
        """Forgets the content of all pages, because a step failed that may not have written what it was to write.

        Raises:
            ValueError: Requests hold pages.
        """
        if self._open:
            raise ValueError(f"{len(self._open)} requests hold pages, whose content can't be forgotten")
        self._pools = {name: PagePool(pool.num_pages) for name, pool in self._pools.items()}

    def release(self, pages: RequestPages) -> None:
        """Unregisters a request and frees its pages; their content may still be found by its hash."""
        del self._open[pages]
        for name, table in pages.tables.items():
            self._pools[name].release(table.pages)

    def runtime_inputs(self, rows: Sequence[RequestPages], num_new: Sequence[int]) -> StepInputs:
        """The inputs of the next step, for at least one row.

        Lengths count from the first page that a group keeps: masks depend on distances alone.

        Args:
            rows: The pages of each row.
            num_new: Tokens that each row computes, for which `allocate` made room.

        Raises:
            ValueError: A row has no room.
        """
        for pages, count in zip(rows, num_new, strict=True):
            self._require_room(pages, count)
        counts = np.array(num_new, np.uint32)
        return {group.name: self._group_inputs(group, rows, counts) for group in self.params.groups}

    def _group_inputs(
        self, group: PageGroup, rows: Sequence[RequestPages], num_new: npt.NDArray[np.uint32]
    ) -> tuple[KVCacheInputsPerDevice[Buffer, Buffer], ...]:
        tables = [row.tables[group.name] for row in rows]
        skipped = [table.num_skipped_pages * group.page_size for table in tables]
        kept = [row.num_computed_tokens - count for row, count in zip(rows, skipped, strict=True)]
        memory, lookup = self._memory[group.name], lookup_table([table.pages for table in tables])
        lookups = [to_device(lookup, pages.device) for pages in memory]
        return group_inputs(group, memory, lookups, np.array(kept, np.uint32), num_new)

    def _require_room(self, pages: RequestPages, num_new: int) -> None:
        room = min(table.end for table in pages.tables.values()) * self.params.page_size - pages.num_computed_tokens
        if num_new > room:
            raise ValueError(f"the request has allocated room for {room} tokens, not {num_new}")

    def check(self) -> None:
        """Checks the invariants of pools and tables.

        Raises:
            AssertionError: An invariant does not hold; the message names it.
        """
        for group in self.params.groups:
            self._pools[group.name].check([pages.tables[group.name].pages for pages in self._open])
            for number, pages in enumerate(self._open):
                self._check_table(group, f"request {number} in group '{group.name}'", pages)

    def _check_table(self, group: PageGroup, place: str, pages: RequestPages) -> None:
        table, length = pages.tables[group.name], pages.num_computed_tokens
        require(len(set(table.pages)) == len(table.pages), f"{place} holds a page twice")
        require(table.num_skipped_pages <= group.num_skipped_pages(length), f"{place} lost a page that it still sees")
        require(table.end >= group.num_pages(length), f"{place} has tokens without a page")
        partial = table.pages[length // group.page_size - table.num_skipped_pages :]
        hashed = [page for page in partial if self._pools[group.name].page_hash(page) is not None]
        require(not hashed, f"{place} has hashed pages that are not full: {hashed}")
