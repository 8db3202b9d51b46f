"""Reads a safetensors file, mapped into memory. The format: https://huggingface.co/docs/safetensors."""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from max.dtype import DType

from pipelines.errors import InputError

Array = npt.NDArray[Any]

DTYPES = {
    "BOOL": DType.bool,
    "U8": DType.uint8,
    "I8": DType.int8,
    "I16": DType.int16,
    "I32": DType.int32,
    "I64": DType.int64,
    "F8_E4M3": DType.float8_e4m3fn,
    "F8_E5M2": DType.float8_e5m2,
    "F16": DType.float16,
    "BF16": DType.bfloat16,
    "F32": DType.float32,
    "F64": DType.float64,
}
MAX_HEADER_BYTES = 100_000_000  # the format's limit
MAX_DIMENSIONS = 32  # numpy's limit before version 2
MAX_BYTES = 2**63 - 1
# numpy has none of these types: their bits are held as integers.
STORED_AS = {DType.bfloat16: np.uint16, DType.float8_e4m3fn: np.uint8, DType.float8_e5m2: np.uint8}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file describes it, with its bytes mapped but not yet read."""

    name: str
    path: Path
    dtype_name: str
    shape: tuple[int, ...]
    data: Array  # uint8, a view of the mapping

    @property
    def dtype(self) -> DType:
        """The MAX type.

        Raises:
            InputError: MAX has no such type.
        """
        if self.dtype_name not in DTYPES:
            raise InputError(f"tensor '{self.name}' in {self.path} has type {self.dtype_name}, which can't be read")
        return DTYPES[self.dtype_name]

    def array(self) -> Array:
        """Values of the tensor, as integers of the same width if numpy lacks the type."""
        return self.data.view(storage_dtype(self.dtype)).reshape(self.shape)


def storage_dtype(dtype: DType) -> np.dtype[Any]:
    """Numpy type that holds the bits of a MAX type."""
    stored_as = STORED_AS.get(dtype)
    return np.dtype(stored_as) if stored_as is not None else dtype.to_numpy()


def read_tensors(path: Path) -> Iterator[StoredTensor]:
    """Yields the tensors of one file, in the header's order.

    Raises:
        InputError: The file can't be read, is cut short or breaks a rule of the format.
    """
    data = _map(path)
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if data[:20].tobytes().startswith(b"version https://git"):
        raise _damaged(path, "it is a Git LFS pointer")
    if len(data) < 8 or not 0 < header_bytes <= MAX_HEADER_BYTES:
        raise _damaged(path, "it has no header")
    if 8 + header_bytes > len(data):
        raise _cut_short(path, 8 + header_bytes, len(data))
    body = data[8 + header_bytes :]
    header = _parse_header(path, data[8 : 8 + header_bytes].tobytes())
    entries = [_entry(path, name, fields) for name, fields in header.items() if name != "__metadata__"]
    end = _check_ranges(path, entries)
    if end > len(body):
        raise _cut_short(path, 8 + header_bytes + end, len(data))
    if end < len(body):
        raise _damaged(path, f"it has {len(body) - end} bytes after its last tensor")
    for entry in entries:
        yield StoredTensor(entry.name, path, entry.dtype_name, entry.shape, body[entry.start : entry.stop])


def drop_resident_pages(array: Array) -> None:
    """Frees the memory that reading a mapped file has taken; the values stay readable."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap):
        owner.obj.madvise(mmap.MADV_DONTNEED)


def _map(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            # A private writable mapping, which is never written: Buffer.from_numpy copies read-only arrays.
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except ValueError:  # a file of zero bytes can't be mapped
        raise _damaged(path, "it is empty") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None


class _Entry(NamedTuple):
    """A tensor of the header. start, stop: its bytes, counted from the header's end."""

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _parse_header(path: Path, header: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise _damaged(path, f"'{name}' is there twice in its header")
        return fields

    try:
        entries = json.loads(header.decode(), object_pairs_hook=without_duplicates)
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise _damaged(path, "its header isn't JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header isn't a JSON object")
    return entries


def _entry(path: Path, name: str, fields: Any) -> _Entry:
    """Checks the header's fields of one tensor."""
    fields = fields if isinstance(fields, dict) else {}
    dtype_name, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype_name, str):
        raise _wrong(path, name, "dtype is no name")
    if not _are_counts(shape):
        raise _wrong(path, name, "shape is no list of sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(path, name, "data_offsets are no range of bytes")
    if len(shape) > MAX_DIMENSIONS:
        raise _wrong(path, name, f"its {len(shape)} dimensions are more than {MAX_DIMENSIONS}")
    dtype, num_bytes = DTYPES.get(dtype_name), offsets[1] - offsets[0]
    itemsize = 1 if dtype is None else dtype.size_in_bytes
    expected_bytes = math.prod(shape) * itemsize
    if dtype is not None and num_bytes != expected_bytes:
        raise _damaged(path, f"tensor '{name}' of shape {shape} has {num_bytes} bytes, not {expected_bytes}")
    if math.prod(max(size, 1) for size in shape) * itemsize > MAX_BYTES:  # numpy can't have [0, huge, huge] either
        raise _wrong(path, name, f"shape {shape} is too large")
    return _Entry(name, dtype_name, tuple(shape), *offsets)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_BYTES for value in values)


def _check_ranges(path: Path, entries: list[_Entry]) -> int:
    """Checks that the tensors follow each other without gaps and overlaps; returns the end of the last one."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start < end:
            raise _wrong(path, entry.name, "data_offsets overlap another tensor's")
        if entry.start > end:
            raise _damaged(path, f"it has {entry.start - end} bytes before tensor '{entry.name}' that belong to none")
        end = entry.stop
    return end


def _wrong(path: Path, name: str, why: str) -> InputError:
    return _damaged(path, f"its header is wrong at '{name}': {why}")


def _cut_short(path: Path, expected_bytes: int, found_bytes: int) -> InputError:
    return InputError(
        f"{path} is cut short: it should have {expected_bytes} bytes and has {found_bytes}; download it again"
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} isn't a safetensors file or is damaged: {why}; download it again")
