"""Page memory, and the buffers that tell a graph where the pages of each row are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device, Usage
from max.dtype import DType
from max.nn.kv_cache import KVCacheInputsPerDevice, padded_lut_cols

from kv_cache.params import KVCacheParams, PageGroup

StepInputs = dict[str, tuple[KVCacheInputsPerDevice[Buffer, Buffer], ...]]
"""The cache inputs of one step: for each page group, an entry per device."""

ALIGNMENT_BYTES = 64
"""A cache line, which is also the widest vector load."""


def allocate_pages(group: PageGroup, num_pages: int, device: Device) -> Buffer:
    """Zeroed pages of one device, [num_pages, 2 (K and V), layers, page_size, heads of the device, row_size]."""
    shape = [num_pages, *group.max_params.shape_per_block]
    if device.is_host:
        return _untouched_zeros(shape, group.dtype)
    return Buffer.zeros(shape, group.dtype, device)


def _untouched_zeros(shape: Sequence[int], dtype: DType) -> Buffer:
    """Zeros in host memory that takes no space until it is written: numpy gets them zeroed from the system."""
    size_bytes = math.prod(shape) * dtype.size_in_bytes
    memory = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return Buffer.from_numpy(memory[start : start + size_bytes]).view(dtype, shape)


def to_device(array: npt.NDArray[Any], device: Device) -> Buffer:
    """Places an array on a device, on the host without a copy.

    To others it goes through host memory that the device reads itself, so that the copy waits in the device's queue and
    the host for nothing. That memory is new each time: the copy before may not have begun.
    """
    if device.is_host:
        return Buffer.from_numpy(array)
    usage = Usage.STAGING | Usage.UNTRACKED
    staged = Buffer(dtype=DType.from_numpy(array.dtype), shape=array.shape, device=device, usage=usage)
    np.copyto(staged.to_numpy(), array)
    placed = Buffer(dtype=staged.dtype, shape=array.shape, device=device)
    placed.inplace_copy_from(staged)
    return placed


def lookup_table(tables: Sequence[Sequence[int]]) -> npt.NDArray[np.uint32]:
    """Page numbers of each row, [rows, at least the longest table], padded with zeros that no row reads."""
    lookup = np.zeros((len(tables), padded_lut_cols(max(map(len, tables)))), np.uint32)
    for row, pages in zip(lookup, tables, strict=True):
        row[: len(pages)] = pages
    return lookup


def group_inputs(
    group: PageGroup,
    pages: Sequence[Buffer],
    lookup_tables: Sequence[Buffer],
    num_cached: npt.NDArray[np.uint32],
    num_new: npt.NDArray[np.uint32],
) -> tuple[KVCacheInputsPerDevice[Buffer, Buffer], ...]:
    """The inputs of one group, an entry per device.

    Args:
        group: The page group.
        pages: Its page memory, one buffer per device.
        lookup_tables: The page numbers of each row, one table per device.
        num_cached: [rows] tokens of each row's table that were computed before this step.
        num_new: [rows] tokens that this step computes.
    """
    max_new, max_cached = int(num_new.max()), int((num_cached + num_new).max())
    key = group.max_params.resolve_attn_key(len(num_new), max_new, max_cached)
    return tuple(
        KVCacheInputsPerDevice(
            kv_blocks=blocks,
            cache_lengths=to_device(num_cached, blocks.device),
            lookup_table=table,
            max_prompt_length=Buffer.from_numpy(np.array([max_new], np.uint32)),
            max_cache_length=Buffer.from_numpy(np.array([max_cached], np.uint32)),
            page_stride=Buffer.from_numpy(np.array([math.prod(blocks.shape[1:])], np.int64)),
            attention_dispatch_metadata=key.pack_into_buffer(blocks.device, max_cached),
        )
        for blocks, table in zip(pages, lookup_tables, strict=True)
    )


def advance(
    inputs: Mapping[str, Sequence[KVCacheInputsPerDevice[Buffer, Buffer]]],
    params: KVCacheParams,
    row_lengths: Sequence[int],
) -> StepInputs:
    """The inputs of the step after this one, of one token per row, over the same tables.

    Args:
        inputs: Those of this step; the tables must already reach one token further.
        params: The page groups.
        row_lengths: Tokens of each row in this step.
    """
    computed, one = np.array(row_lengths, np.uint32), np.ones(len(row_lengths), np.uint32)
    return {
        name: group_inputs(
            params.group(name),
            [device.kv_blocks for device in devices],
            [device.lookup_table for device in devices],
            devices[0].cache_lengths.to_numpy() + computed,
            one,
        )
        for name, devices in inputs.items()
    }
