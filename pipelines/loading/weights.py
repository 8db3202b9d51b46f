"""The weights of a graph, made of a checkpoint's tensors: opened, checked, then made one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData

from pipelines.errors import InputError
from pipelines.loading.blocks import BlockFormat, StoredType, stored_type
from pipelines.loading.encodings.float8_e4m3fn import SCALE_SUFFIX
from pipelines.loading.pieces import Piece, can_convert, piece_of, scales_of
from pipelines.loading.safetensors_file import STORED_AS, Array, drop_resident_pages, read_tensors, storage_dtype
from pipelines.loading.weight_cache.cache import WeightCache
from pipelines.loading.weight_spec import WeightSpec

CHUNK_SIZE = 1 << 21  # elements that a thread casts at a time: few enough calls that the GIL is no bottleneck
CHUNKS_PER_SLAB = 16  # after so many, the memory that reading the file took is freed
ALIGNMENT_BYTES = 64  # kernels load the widest vectors from weights, and crash if these are not aligned


WeightAdapter = Callable[[dict[str, WeightData], Any], dict[str, WeightData]]
"""A function (tensors by the checkpoint's names, Hugging Face config) -> tensors by the graph's names.

It may drop tensors, split and join them, and change their values. It raises KeyError with the name of a tensor that it
does not know.
"""


def open_state_dict(paths: Sequence[Path], adapt: WeightAdapter, huggingface_config: Any) -> dict[str, WeightData]:
    """Maps safetensors files into memory and gives their tensors the graph's names.

    `WeightData.name` keeps the checkpoint's name, for messages.

    Args:
        paths: The files of one checkpoint.
        adapt: The architecture's weight adapter.
        huggingface_config: The configuration that the adapter reads.

    Raises:
        InputError: A file is damaged, or a tensor is unknown or occurs twice.
    """
    tensors: dict[str, WeightData] = {}
    for path in paths:
        for tensor in read_tensors(path):
            if tensor.name in tensors:
                raise InputError(f"tensor '{tensor.name}' is twice in {path.parent}: remove one of the files")
            tensors[tensor.name] = WeightData(tensor.array(), tensor.name, tensor.dtype, Shape(tensor.shape))
    try:
        return adapt(tensors, huggingface_config)
    except KeyError as error:
        raise InputError(
            f"unexpected tensor '{error.args[0]}' in {paths[0].parent}: its architecture doesn't have it"
        ) from None


def rename(tensors: Mapping[str, WeightData], adapt_name: Callable[[str], str | None]) -> dict[str, WeightData]:
    """Renames tensors by `adapt_name`, and drops those for which it returns None.

    Raises:
        InputError: Two tensors become the same weight.
    """
    renamed: dict[str, WeightData] = {}
    for data in tensors.values():
        name = adapt_name(data.name)
        if name is None:
            continue
        if name in renamed:
            both = f"'{renamed[name].name}' and '{data.name}'"
            raise InputError(f"tensors {both} would both be '{name}': remove one of them")
        renamed[name] = data
    return renamed


def check_weights(specs: Iterable[WeightSpec], state_dict: Mapping[str, WeightData]) -> None:
    """Checks that the checkpoint holds the tensors of these weights and no others, before anything is compiled.

    Raises:
        InputError: A tensor is missing, misshapen, unexpected or of a type that can't be cast; the message names it.
    """
    used = set()
    for spec in specs:
        for source in spec.sources:
            used |= _check_source(source.name, source.shape, spec, state_dict)
    unused = [data.name for name, data in state_dict.items() if name not in used]
    if unused:
        others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise InputError(f"unexpected tensor '{unused[0]}'{others}: config.json describes a model without it")


def _check_source(
    name: str, shape: tuple[int, ...], spec: WeightSpec, state_dict: Mapping[str, WeightData]
) -> set[str]:
    """Checks a source, and returns the names of the tensors that it is made of."""
    data = state_dict.get(name)
    if data is None:
        raise InputError(f"missing tensor '{name}': config.json describes a model with it, the checkpoint has none")
    found = tuple(int(dim) for dim in data.shape)
    if found != shape:
        raise InputError(f"tensor '{data.name}' has shape {list(found)}, but config.json asks for {list(shape)}")
    stored = stored_type(data)
    if spec.quant_config is not None and spec.is_dequantized(stored):
        _check_source(name + SCALE_SUFFIX, spec.quant_config.scale_shape(shape), SCALES, state_dict)
        return {name, name + SCALE_SUFFIX}
    if not can_convert(stored, spec.stored_as):
        raise InputError(f"tensor '{data.name}' is {stored.name}, which can't become {spec.stored_as.name}")
    return {name}


SCALES = WeightSpec("scales", DType.float32, ())
"""The specification by which the scales of a dequantized weight are read."""


def materialize(
    specs: Iterable[WeightSpec],
    state_dict: Mapping[str, WeightData],
    devices: Sequence[Device],
    cache: WeightCache | None = None,
) -> dict[str, Array | Buffer]:
    """Makes the graph's weights, one at a time: cut, converted, joined and placed. `check_weights` comes first.

    A weight is a numpy array, or a Buffer if numpy lacks the type. One that needs no work and is aligned in the file is
    a view of the mapping, not a copy, so the result must live as long as the model that is loaded with it.

    Args:
        specs: The weights.
        state_dict: The checkpoint's tensors, in the graph's names.
        devices: Those of the graph.
        cache: Holds weights that were quantized before, and takes those that are quantized now.
    """
    cache = cache or WeightCache.open(None, {})
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, cache.writer() as writer:

        def make(spec: WeightSpec) -> Array | Buffer:
            if not _is_quantized(spec, state_dict):
                return _make(spec, state_dict, pool)
            kept = cache.get(spec.name, spec.shape, np.uint8)
            if kept is not None:
                return kept
            weight = _make(spec, state_dict, pool)
            assert isinstance(weight, np.ndarray)
            writer.add(spec.name, weight)
            return weight

        weights = {spec.name: _place(make(spec), spec, devices, state_dict) for spec in specs}
    cache.problem = cache.problem or writer.problem
    return weights


def _is_quantized(spec: WeightSpec, state_dict: Mapping[str, WeightData]) -> bool:
    """Whether making the weight quantizes a tensor."""
    sources = [stored_type(state_dict[source.name]) for source in spec.sources]
    return spec.block_format is not None and any(stored != spec.stored_as for stored in sources)


def _place(
    weight: Array | Buffer, spec: WeightSpec, devices: Sequence[Device], state_dict: Mapping[str, WeightData]
) -> Array | Buffer:
    """Places a weight where the graph expects it. Of one on a GPU nothing stays in the host's memory."""
    if spec.is_placed_on_host(devices):
        return weight
    device = devices[spec.shard]
    placed = (Buffer.from_numpy(weight) if isinstance(weight, np.ndarray) else weight).to(device)
    device.synchronize()  # the copy reads the mapped files, whose pages are dropped next
    for source in spec.sources:
        drop_resident_pages(np.asarray(state_dict[source.name].data))
    return placed


def _make(spec: WeightSpec, state_dict: Mapping[str, WeightData], pool: ThreadPoolExecutor) -> Array | Buffer:
    pieces = [
        piece_of(source, spec, state_dict[source.name], scales_of(source, spec, state_dict)) for source in spec.sources
    ]
    if [piece.stored_as for piece in pieces] == [spec.stored_as] and _can_be_used_in_place(pieces[0].array, spec):
        result = pieces[0].array
    else:
        result = _aligned_empty(spec.shape, storage_dtype(spec.dtype))
        row = 0
        for piece in pieces:
            rows = np.atleast_1d(result)[row : row + np.atleast_1d(piece.array).shape[0]]
            _fill(rows, spec.stored_as, piece, pool)
            row += len(rows)
        np.atleast_1d(result)[row:] = 0  # the padding; in blocks zeros stand for zeros too
    return Buffer.from_numpy(result).view(spec.dtype, spec.shape) if spec.dtype in STORED_AS else result


def _aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    size_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes].view(dtype).reshape(shape)


def _can_be_used_in_place(array: Array, spec: WeightSpec) -> bool:
    """Whether kernels can read the mapped file: blocks and rows that are looked up need no alignment, all others do."""
    alignment = array.itemsize if spec.is_on_host or spec.block_format is not None else ALIGNMENT_BYTES
    return array.shape == spec.shape and array.flags.c_contiguous and array.ctypes.data % alignment == 0


def _fill(target: Array, stored_as: StoredType, piece: Piece, pool: ThreadPoolExecutor) -> None:
    """Converts a piece into `target` on all cores, a slab of memory at a time.

    numpy works on one core, and releases the GIL; the quantizers take all cores by themselves.
    """
    num_rows = max(1, CHUNK_SIZE // max(1, target[0].size)) if len(target) else 1
    starts = range(0, len(target), num_rows)

    def fill_chunk(start: int) -> None:
        rows = slice(start, start + num_rows)
        piece.write(target[rows], stored_as, rows)

    for slab in range(0, len(starts), CHUNKS_PER_SLAB):
        chunks = starts[slab : slab + CHUNKS_PER_SLAB]
        for _ in map(fill_chunk, chunks) if isinstance(stored_as, BlockFormat) else pool.map(fill_chunk, chunks):
            pass
        drop_resident_pages(piece.array)


def same_values(one: WeightData, other: WeightData) -> bool:
    """Whether two tensors hold the same numbers in the same type; reading stops at the first difference."""
    if stored_type(one) != stored_type(other) or tuple(one.shape) != tuple(other.shape):
        return False
    a, b = np.asarray(one.data).reshape(-1), np.asarray(other.data).reshape(-1)
    starts = range(0, a.size, CHUNK_SIZE)
    return all(np.array_equal(a[start : start + CHUNK_SIZE], b[start : start + CHUNK_SIZE]) for start in starts)
