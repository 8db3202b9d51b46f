"""Small caches for tests: one sliding and one full layer, 8 numbers a head."""

from __future__ import annotations

from typing import Any

import numpy as np
from max.driver import CPU
from max.dtype import DType
from max.graph import DeviceRef

from kv_cache import KVCacheManager, KVCacheParams, PageGroup, PageHashes, RequestPages, StepInputs

PAGE = 128


def page_group(name: str = "full", window: int | None = None, **changes: Any) -> PageGroup:
    settings = {
        "num_layers": 1,
        "num_kv_heads": 1,
        "head_dim": 8,
        "dtype": DType.float32,
        "devices": (DeviceRef.CPU(),),
    }
    return PageGroup(name=name, window=window, **(settings | changes))


class NamedCache(KVCacheManager):
    """A cache whose requests have names, and which hashes the pages of their tokens itself, as a context does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: dict[str, tuple[RequestPages, PageHashes]] = {}

    def admit(self, name: str, tokens: list[int], salt: bytes = b"") -> int:
        """Opens a request whose tokens begin so; how many of them the cache has."""
        wanted, hashes = PageHashes(PAGE, salt), PageHashes(PAGE, salt)
        wanted.extend(tokens)
        pages = self.open(wanted.hashes, len(tokens))
        hashes.extend(tokens[: pages.num_computed_tokens])
        self.requests[name] = pages, hashes
        return pages.num_computed_tokens

    def reserve(self, name: str, num_new: int) -> bool:
        return self.allocate(self.requests[name][0], num_new)

    def write(self, name: str, tokens: list[int]) -> None:
        """Counts these as computed."""
        pages, hashes = self.requests[name]
        hashes.extend(tokens)
        self.commit(pages, len(tokens), hashes.hashes)

    def length(self, name: str) -> int:
        return self.requests[name][0].num_computed_tokens

    def inputs(self, names: list[str], num_new: list[int]) -> StepInputs:
        return self.runtime_inputs([self.requests[name][0] for name in names], num_new)

    def drop(self, name: str) -> None:
        self.release(self.requests.pop(name)[0])


def new_cache(full: int = 16, sliding: int = 16, window: int = 200, caching: bool = True) -> NamedCache:
    params = KVCacheParams((page_group("sliding", window), page_group("full")))
    return NamedCache(params, {"full": full, "sliding": sliding}, [CPU()], enable_prefix_caching=caching)


def extend(cache: NamedCache, name: str, tokens: list[int], step: int = 64) -> None:
    """Computes these after those that were there."""
    for start in range(0, len(tokens), step):
        assert cache.reserve(name, len(tokens[start : start + step]))
        cache.write(name, tokens[start : start + step])
        cache.check()


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 262_144, length).tolist()
