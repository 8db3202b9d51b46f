"""The KV cache of a model: which request holds which pages, and the inputs that lead a graph to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.nn.kv_cache import KVCacheInputsPerDevice

from kv_cache.inputs import StepInputs, allocate_pages, group_inputs, lookup_table
from kv_cache.pages import PagePool, PageTable, page_digests, require, root_digest
from kv_cache.params import KVCacheParams, PageGroup


@dataclass
class _Request:
    """What one request has in the cache.

    length: tokens written. digest, tail: the hash of its last full page, and the tokens after that page; they are kept
    up only for prefix caching.
    """

    tables: dict[str, PageTable]
    length: int
    digest: bytes
    tail: list[int] = field(default_factory=list)


class KVCacheManager:
    """Page pools on devices, and a page table for each request and group.

    A step is: `reserve` for each row, `runtime_inputs` for all of them, the model, `commit` for each row.
    num_pages: by group name. With prefix caching, full pages are found again by their content.

    Raises:
        ValueError: A group without pages, or not the number of devices that the parameters were made for.
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
        self._requests: dict[str, _Request] = {}

    @property
    def request_ids(self) -> list[str]:
        """The requests in the cache, oldest first."""
        return list(self._requests)

    @property
    def usage(self) -> float:
        """The part of the pages that requests hold, 0 to 1, in the group where it is largest."""
        return max(1 - pool.num_free / pool.num_pages for pool in self._pools.values())

    @property
    def memory_bytes(self) -> int:
        """All pages on all devices."""
        return sum(self._pools[group.name].num_pages * group.page_bytes for group in self.params.groups)

    def length(self, request_id: str) -> int:
        """Tokens of the request that are in the cache."""
        return self._requests[request_id].length

    def num_free(self, group: str) -> int:
        """Pages of the group that can be taken, those kept for their content included."""
        return self._pools[group].num_free

    def capacity_tokens(self, max_step_tokens: int) -> int:
        """The longest request that is sure to fit when alone; sys.maxsize if all layers slide."""
        return min(self._capacity(group, max_step_tokens) for group in self.params.groups)

    def _capacity(self, group: PageGroup, max_step_tokens: int) -> int:
        num_pages = self._pools[group.name].num_pages
        num_tokens = num_pages * group.page_size
        return num_tokens if group.max_pages(num_tokens + 1, max_step_tokens) > num_pages else sys.maxsize

    def admit(self, request_id: str, tokens: Sequence[int], salt: bytes = b"") -> int:
        """Registers a request with as much of `tokens` as other requests left in the cache.

        Returns the number of tokens reused: whole pages, and not the last token, whose logits are to be computed.
        salt: only requests with equal salts share pages.

        Raises:
            ValueError: The request is already registered.
        """
        if request_id in self._requests:
            raise ValueError(f"request '{request_id}' is already in the KV cache")
        page_size, root = self.params.page_size, root_digest(salt)
        digests = list(page_digests(tokens[:-1], root, page_size)) if self.enable_prefix_caching else []
        num_hit = self._num_resident(digests)
        length = num_hit * page_size
        tables = {}
        for group in self.params.groups:
            num_gone = group.num_pages_gone(length)
            shared = [self._pools[group.name].share(digest) for digest in digests[num_gone:num_hit]]
            tables[group.name] = PageTable(num_gone, shared)
        self._requests[request_id] = _Request(tables, length, digests[num_hit - 1] if num_hit else root)
        return length

    def _num_resident(self, digests: Sequence[bytes]) -> int:
        """The longest prefix, in pages, from which every group can go on; a sliding one needs its last window only."""
        longest = len(digests)
        for group in self.params.groups:
            if group.window is None:
                longest = len(list(takewhile(self._pools[group.name].__contains__, digests[:longest])))
        sliding = [group for group in self.params.groups if group.window is not None]
        return next(
            count
            for count in range(longest, -1, -1)
            if all(self._has_window(group, digests[:count]) for group in sliding)
        )

    def _has_window(self, group: PageGroup, digests: Sequence[bytes]) -> bool:
        """Whether what a token after these pages sees of them is resident."""
        num_gone = group.num_pages_gone(len(digests) * group.page_size)
        return all(digest in self._pools[group.name] for digest in digests[num_gone:])

    def has_room(self, request_id: str, num_tokens: int, max_step_tokens: int) -> bool:
        """Whether the free pages let a request come to `num_tokens`, in steps of at most `max_step_tokens`."""
        tables = self._requests[request_id].tables
        return all(
            group.max_pages(num_tokens, max_step_tokens) - len(tables[group.name].pages) <= self.num_free(group.name)
            for group in self.params.groups
        )

    def reserve(self, request_id: str, num_new: int) -> bool:
        """Makes room for `num_new` more tokens, in all groups or in none; pages that left the window go back first."""
        request = self._requests[request_id]
        missing = {}
        for group in self.params.groups:
            table, pool = request.tables[group.name], self._pools[group.name]
            pool.release(table.slide(group.num_pages_gone(request.length)))
            missing[group.name] = max(0, group.num_pages(request.length + num_new) - table.end)
        if any(count > self._pools[name].num_free for name, count in missing.items()):
            return False
        for name, count in missing.items():
            request.tables[name].pages += self._pools[name].allocate(count) or []
        return True

    def commit(self, request_id: str, tokens: Sequence[int]) -> None:
        """These tokens have been written, after those that were there.

        Raises:
            ValueError: There was no room for so many.
        """
        request = self._requests[request_id]
        self._require_room(request_id, len(tokens))
        request.length += len(tokens)
        if self.enable_prefix_caching:
            self._hash_full_pages(request, tokens)

    def _hash_full_pages(self, request: _Request, tokens: Sequence[int]) -> None:
        page_size = self.params.page_size
        request.tail += tokens
        first = (request.length - len(request.tail)) // page_size
        for position, digest in enumerate(page_digests(request.tail, request.digest, page_size), first):
            request.digest = digest
            for name, table in request.tables.items():
                self._pools[name].set_digest(table.page_at(position), digest)
        del request.tail[: len(request.tail) // page_size * page_size]

    def release(self, request_id: str) -> None:
        """Forgets a request and gives its pages back; what they contain may still be found by its hash."""
        for name, table in self._requests.pop(request_id).tables.items():
            self._pools[name].release(table.pages)

    def runtime_inputs(self, request_ids: Sequence[str], num_new: Sequence[int]) -> StepInputs:
        """The inputs of the next step, for at least one row.

        num_new: tokens that each row computes, for which `reserve` made room. Lengths count from the first page that
        a group keeps: masks depend on distances alone.

        Raises:
            ValueError: A row without room.
        """
        for request_id, count in zip(request_ids, num_new, strict=True):
            self._require_room(request_id, count)
        rows, new = [self._requests[request_id] for request_id in request_ids], np.array(num_new, np.uint32)
        return {group.name: self._group_inputs(group, rows, new) for group in self.params.groups}

    def _group_inputs(
        self, group: PageGroup, rows: Sequence[_Request], num_new: npt.NDArray[np.uint32]
    ) -> tuple[KVCacheInputsPerDevice[Buffer, Buffer], ...]:
        tables = [row.tables[group.name] for row in rows]
        kept = [row.length - table.num_gone * group.page_size for row, table in zip(rows, tables, strict=True)]
        memory, lookup = self._memory[group.name], lookup_table([table.pages for table in tables])
        lookups = [Buffer.from_numpy(lookup).to(pages.device) for pages in memory]
        return group_inputs(group, memory, lookups, np.array(kept, np.uint32), num_new)

    def _require_room(self, request_id: str, num_new: int) -> None:
        request = self._requests[request_id]
        room = min(table.end for table in request.tables.values()) * self.params.page_size - request.length
        if num_new > room:
            raise ValueError(f"request '{request_id}' has reserved room for {room} tokens, not {num_new}")

    def check(self) -> None:
        """Raises AssertionError, naming the broken invariant, unless the books are right."""
        for group in self.params.groups:
            tables = {request_id: request.tables[group.name] for request_id, request in self._requests.items()}
            self._pools[group.name].check([table.pages for table in tables.values()])
            for request_id, table in tables.items():
                self._check_table(group, request_id, table)

    def _check_table(self, group: PageGroup, request_id: str, table: PageTable) -> None:
        place, length = f"request '{request_id}' in group '{group.name}'", self.length(request_id)
        require(len(set(table.pages)) == len(table.pages), f"{place} holds a page twice")
        require(table.num_gone <= group.num_pages_gone(length), f"{place} lost a page that it still sees")
        require(table.end >= group.num_pages(length), f"{place} has tokens without a page")
        partial = table.pages[length // group.page_size - table.num_gone :]
        hashed = [page for page in partial if self._pools[group.name].digest(page) is not None]
        require(not hashed, f"{place} has hashed pages that are not full: {hashed}")
