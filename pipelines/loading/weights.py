"""The weights of a graph, made of a checkpoint's tensors: opened, checked, then made one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData

from pipelines.errors import InputError
from pipelines.loading.cast import can_cast, cast_into
from pipelines.loading.encodings.float8_e4m3fn import SCALE_SUFFIX, ScaledRows
from pipelines.loading.safetensors_file import STORED_AS, Array, drop_resident_pages, read_tensors, storage_dtype
from pipelines.loading.weight_spec import WeightSource, WeightSpec

CHUNK_SIZE = 1 << 21  # elements that a thread casts at a time: few enough calls that the GIL is no bottleneck
CHUNKS_PER_SLAB = 16  # after so many, the memory that reading the file took is freed
ALIGNMENT_BYTES = 64  # kernels load the widest vectors from weights, and crash if these are not aligned


@dataclass(frozen=True)
class Piece:
    """The part of a weight that one source holds: a view of the mapped file, with its scales if it is float8."""

    array: Array
    dtype: DType
    scaled: ScaledRows | None = None

    def cast_into(self, target: Array, dtype: DType, rows: slice) -> None:
        """Writes these rows into `target`; those with scales are rounded to bfloat16, whatever the target's type."""
        if self.scaled is None:
            cast_into(target, dtype, np.atleast_1d(self.array)[rows], self.dtype)
            return
        values = self.scaled.dequantize(rows)
        rounded = np.empty(values.shape, np.uint16)
        cast_into(rounded, DType.bfloat16, values, DType.float32)
        cast_into(target, dtype, rounded, DType.bfloat16)


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
    if spec.quant_config is not None and spec.is_dequantized(data.dtype):
        _check_source(name + SCALE_SUFFIX, spec.quant_config.scale_shape(shape), SCALES, state_dict)
        return {name, name + SCALE_SUFFIX}
    if not can_cast(data.dtype, spec.dtype):
        raise InputError(f"tensor '{data.name}' is {data.dtype.name}, which can't become {spec.dtype.name}")
    return {name}


SCALES = WeightSpec("scales", DType.float32, ())
"""The specification by which the scales of a dequantized weight are read."""


def _as_float32(data: WeightData) -> npt.NDArray[np.float32]:
    array = data.data
    assert isinstance(array, np.ndarray)
    values = np.empty(array.shape, np.float32)
    cast_into(values, DType.float32, array, data.dtype)
    return values


def materialize(
    specs: Iterable[WeightSpec], state_dict: Mapping[str, WeightData], devices: Sequence[Device]
) -> dict[str, Array | Buffer]:
    """Makes the graph's weights, one at a time: cut, cast, joined and placed. `check_weights` comes first.

    A weight is a numpy array, or a Buffer if numpy lacks the type. One that needs no work and is aligned in the file is
    a view of the mapping, not a copy, so the result must live as long as the model that is loaded with it.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {spec.name: _place(_make(spec, state_dict, pool), spec, devices) for spec in specs}


def _place(weight: Array | Buffer, spec: WeightSpec, devices: Sequence[Device]) -> Array | Buffer:
    if spec.is_placed_on_host(devices):
        return weight
    return (Buffer.from_numpy(weight) if isinstance(weight, np.ndarray) else weight).to(devices[spec.shard])


def _make(spec: WeightSpec, state_dict: Mapping[str, WeightData], pool: ThreadPoolExecutor) -> Array | Buffer:
    pieces = [_piece(source, spec, state_dict) for source in spec.sources]
    if [piece.dtype for piece in pieces] == [spec.dtype] and _can_be_used_in_place(pieces[0].array, spec):
        result = pieces[0].array
    else:
        result = _aligned_empty(_joined_shape([piece.array for piece in pieces]), storage_dtype(spec.dtype))
        row = 0
        for piece in pieces:
            rows = np.atleast_1d(result)[row : row + np.atleast_1d(piece.array).shape[0]]
            _fill(rows, spec.dtype, piece, pool)
            row += len(rows)
    return Buffer.from_numpy(result).view(spec.dtype, spec.shape) if spec.dtype in STORED_AS else result


def _piece(source: WeightSource, spec: WeightSpec, state_dict: Mapping[str, WeightData]) -> Piece:
    """Cuts the source tensor to the weight's shard."""
    data, cut = state_dict[source.name], source.cut(spec.shard, spec.num_shards)
    array, first = data.data, [0] * len(source.shape)
    assert isinstance(array, np.ndarray)
    if source.axis is not None:
        first[source.axis] = cut.start
        array = array[(slice(None),) * source.axis + (cut,)]
    if spec.quant_config is None or not spec.is_dequantized(data.dtype):
        return Piece(array, data.dtype)
    scales = _as_float32(state_dict[source.name + SCALE_SUFFIX])
    return Piece(array, data.dtype, ScaledRows(array, scales, (first[0], first[1]), spec.quant_config.block))


def _aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    size_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size_bytes].view(dtype).reshape(shape)


def _can_be_used_in_place(array: Array, spec: WeightSpec) -> bool:
    """Whether kernels can read the mapped file: the lookup of a table's rows needs no alignment, all others do."""
    alignment = array.itemsize if spec.is_on_host else ALIGNMENT_BYTES
    return array.flags.c_contiguous and array.ctypes.data % alignment == 0


def _joined_shape(pieces: Sequence[Array]) -> tuple[int, ...]:
    first = pieces[0].shape
    return first if len(pieces) == 1 else (sum(piece.shape[0] for piece in pieces), *first[1:])


def _fill(target: Array, dtype: DType, piece: Piece, pool: ThreadPoolExecutor) -> None:
    """Casts a piece into `target` on all cores (numpy releases the GIL), a slab of memory at a time."""
    num_rows = max(1, CHUNK_SIZE // max(1, target[0].size)) if len(target) else 1
    starts = range(0, len(target), num_rows)

    def fill_chunk(start: int) -> None:
        rows = slice(start, start + num_rows)
        piece.cast_into(target[rows], dtype, rows)

    for slab in range(0, len(starts), CHUNKS_PER_SLAB):
        for _ in pool.map(fill_chunk, starts[slab : slab + CHUNKS_PER_SLAB]):
            pass
        drop_resident_pages(piece.array)


def same_values(one: WeightData, other: WeightData) -> bool:
    """Whether two tensors hold the same numbers in the same type; reading stops at the first difference."""
    if one.dtype != other.dtype or tuple(one.shape) != tuple(other.shape):
        return False
    a, b = np.asarray(one.data).reshape(-1), np.asarray(other.data).reshape(-1)
    starts = range(0, a.size, CHUNK_SIZE)
    return all(np.array_equal(a[start : start + CHUNK_SIZE], b[start : start + CHUNK_SIZE]) for start in starts)
