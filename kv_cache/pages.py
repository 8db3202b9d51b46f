"""Pages of one group: their holders, their content, those that may be taken. Numbers only, no memory."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class PageTable:
    """The pages of one request in one group: positional and append-only.

    num_skipped_pages: leading pages that left the window; `pages` begins at that position.
    """

    num_skipped_pages: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The position after the last page."""
        return self.num_skipped_pages + len(self.pages)

    def page_at(self, position: int) -> int:
        """The page that holds the tokens from position * page_size on.

        Raises:
            IndexError: The page left the window.
        """
        if position < self.num_skipped_pages:
            raise IndexError(f"page {position} left the window; the first one kept is {self.num_skipped_pages}")
        return self.pages[position - self.num_skipped_pages]

    def slide(self, num_skipped_pages: int) -> list[int]:
        """Drops the pages before position `num_skipped_pages` and returns them."""
        count = max(0, num_skipped_pages - self.num_skipped_pages)
        dropped, self.pages = self.pages[:count], self.pages[count:]
        self.num_skipped_pages += count
        return dropped


class PagePool:
    """Free and used pages, with their reference counts and content hashes.

    A free page keeps its hash, and can be shared again, until it is allocated for something else. Pages without a hash
    are taken first, the latest freed before all others, so that memory never touched stays so; then the hashed ones,
    the longest unused first.

    Raises:
        ValueError: num_pages is less than 1.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a page pool needs at least one page, not {num_pages}")
        self._num_references = [0] * num_pages
        self._page_hashes: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))  # in the order of being taken

    @property
    def num_pages(self) -> int:
        """Number of all pages."""
        return len(self._num_references)

    @property
    def num_free(self) -> int:
        """Number of pages that no table holds, whether or not their content may still be shared."""
        return len(self._free)

    def __contains__(self, page_hash: bytes) -> bool:
        """Whether a page with this content is resident."""
        return page_hash in self._page_of

    def page_hash(self, page: int) -> bytes | None:
        """The content hash of a page, if it has one."""
        return self._page_hashes[page]

    def allocate(self, count: int) -> list[int] | None:
        """Takes `count` pages and drops their content; None, and nothing is taken, if too few are free."""
        if count > self.num_free:
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._num_references[page] = 1
            if (page_hash := self._page_hashes[page]) is not None:
                self._page_hashes[page] = None
                del self._page_of[page_hash]
        return pages

    def share(self, page_hash: bytes) -> int:
        """Takes the page that has this content.

        Raises:
            KeyError: No such page is resident.
        """
        page = self._page_of[page_hash]
        self._free.pop(page, None)
        self._num_references[page] += 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Gives back one reference to each page, tail first: the beginning of a prompt outlives its end.

        Raises:
            ValueError: No table holds the page.
        """
        for page in reversed(pages):
            if self._num_references[page] < 1:
                raise ValueError(f"page {page} is released, but no table holds it")
            self._num_references[page] -= 1
            if self._num_references[page] == 0:
                self._free[page] = None
                self._free.move_to_end(page, last=self._page_hashes[page] is not None)

    def set_page_hash(self, page: int, page_hash: bytes) -> None:
        """Makes a full page findable by its content; if another page with it already is, this one stays private.

        Raises:
            ValueError: The page has a hash.
        """
        if self._page_hashes[page] is not None:
            raise ValueError(f"the content hash of page {page} is set twice")
        if page_hash not in self._page_of:
            self._page_hashes[page] = page_hash
            self._page_of[page_hash] = page

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Checks that exactly these tables hold the pages, and that hashes lead to their pages.

        Raises:
            AssertionError: An invariant does not hold; the message names it.
        """
        holders = Counter(page for table in tables for page in table)
        for page, num_references in enumerate(self._num_references):
            page_hash = self._page_hashes[page]
            require(num_references == holders[page], f"page {page}: {num_references} references, {holders[page]} held")
            require((num_references == 0) == (page in self._free), f"page {page} is free and used, or neither")
            require(num_references < 2 or page_hash is not None, f"page {page} is shared but has no content hash")
            require(page_hash is None or self._page_of.get(page_hash) == page, f"page {page} is not found by its hash")
        num_hashed = sum(page_hash is not None for page_hash in self._page_hashes)
        require(len(self._page_of) == num_hashed, f"{len(self._page_of)} hashes lead to {num_hashed} pages")
        require(holders.keys() <= set(range(self.num_pages)), "a table holds a page that does not exist")


def require(condition: bool, message: str) -> None:
    """Asserts a condition, under python -O too.

    Raises:
        AssertionError: The condition is false.
    """
    if not condition:
        raise AssertionError(message)


class PageHashes:
    """The content hashes of a token sequence's whole pages, computed once as tokens are added.

    A page's hash covers the tokens in it and, through its parent's, all before it. cache_salt: the root of the chain;
    sequences with different salts share nothing. hashes: one for each whole page.
    """

    def __init__(self, page_size: int, cache_salt: bytes = b"") -> None:
        self.page_size = page_size
        self.hashes: list[bytes] = []
        self._parent = hashlib.sha256(cache_salt).digest()
        self._tail = array("q")

    @property
    def num_tokens(self) -> int:
        """Number of tokens added, those included that wait for their page to be whole."""
        return len(self.hashes) * self.page_size + len(self._tail)

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds the next tokens of the sequence, or the hash keys that replace them (`ImageSpan.hash_keys`)."""
        self._tail.extend(tokens)
        content, page_size = memoryview(self._tail), self.page_size
        for start in range(0, len(self._tail) - page_size + 1, page_size):
            self._parent = hashlib.sha256(self._parent + content[start : start + page_size]).digest()
            self.hashes.append(self._parent)
        content.release()
        del self._tail[: len(self._tail) // page_size * page_size]
