"""Small caches for tests: one sliding and one full layer, 8 numbers a head."""

from __future__ import annotations

from typing import Any

import numpy as np
from max.driver import CPU
from max.dtype import DType
from max.graph import DeviceRef

from kv_cache import KVCacheManager, KVCacheParams, PageGroup

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


def new_cache(full: int = 16, sliding: int = 16, window: int = 200, caching: bool = True) -> KVCacheManager:
    params = KVCacheParams((page_group("sliding", window), page_group("full")))
    return KVCacheManager(params, {"full": full, "sliding": sliding}, [CPU()], enable_prefix_caching=caching)


def extend(cache: KVCacheManager, request_id: str, tokens: list[int], step: int = 64) -> None:
    for start in range(0, len(tokens), step):
        assert cache.reserve(request_id, len(tokens[start : start + step]))
        cache.commit(request_id, tokens[start : start + step])
        cache.check()


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 262_144, length).tolist()
