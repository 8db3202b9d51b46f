"""Paged KV cache: pages, tables, prefix hits and sizes. It knows no model and no text."""

from __future__ import annotations

from kv_cache.inputs import StepInputs, advance, to_device
from kv_cache.manager import KVCacheManager, RequestPages
from kv_cache.pages import PageHashes, PagePool, PageTable
from kv_cache.params import KVCacheParams, PageGroup
from kv_cache.sizing import CachePlan, format_bytes, plan_cache

__all__ = [
    "CachePlan",
    "KVCacheManager",
    "KVCacheParams",
    "PageGroup",
    "PageHashes",
    "PagePool",
    "PageTable",
    "RequestPages",
    "StepInputs",
    "advance",
    "format_bytes",
    "plan_cache",
    "to_device",
]
