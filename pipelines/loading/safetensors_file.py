"""One safetensors file, mapped into memory: https://huggingface.co/docs/safetensors (the format in 8 lines)."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
# numpy has none of these: the same bits as an integer.
STORED_AS = {DType.bfloat16: np.uint16, DType.float8_e4m3fn: np.uint8, DType.float8_e5m2: np.uint8}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file describes it, with its bytes still on disk."""

    name: str
    path: Path
    dtype_name: str
    shape: tuple[int, ...]
    data: Array  # uint8, a view of the mapping

    @property
    def dtype(self) -> DType:
        """Raises InputError for a type that MAX doesn't have."""
        if self.dtype_name not in DTYPES:
            raise InputError(f"tensor '{self.name}' in {self.path} has type {self.dtype_name}, which can't be read")
        return DTYPES[self.dtype_name]

    def array(self) -> Array:
        """The values, in the integer type of the same width where numpy has no type of its own."""
        dtype, size_bytes = storage_dtype(self.dtype), len(self.data)
        if math.prod(self.shape) * dtype.itemsize != size_bytes:
            raise _damaged(self.path, f"tensor '{self.name}' of shape {list(self.shape)} has {size_bytes} bytes")
        return self.data.view(dtype).reshape(self.shape)


def storage_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy type that holds a MAX type's bits."""
    stored_as = STORED_AS.get(dtype)
    return np.dtype(stored_as) if stored_as is not None else dtype.to_numpy()


def read_tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one file, in the header's order.

    Raises InputError naming the file if it is cut short or isn't in this format.
    """
    data = _map(path)
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if data[:20].tobytes().startswith(b"version https://git"):
        raise _damaged(path, "it is a Git LFS pointer")
    if len(data) < 8 or header_bytes > MAX_HEADER_BYTES:
        raise _damaged(path, "it has no header")
    if 8 + header_bytes > len(data):
        raise _cut_short(path, 8 + header_bytes, len(data))
    body = data[8 + header_bytes :]
    tensors = [_entry(path, *item) for item in _parse_header(path, data[8 : 8 + header_bytes].tobytes())]
    end = max((stop for _, _, _, _, stop in tensors), default=0)
    if end > len(body):
        raise _cut_short(path, 8 + header_bytes + end, len(data))
    for name, dtype_name, shape, start, stop in tensors:
        yield StoredTensor(name, path, dtype_name, shape, body[start:stop])


def drop_resident_pages(array: Array) -> None:
    """Give the memory back that reading a mapped file has taken; the values stay readable."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap):
        owner.obj.madvise(mmap.MADV_DONTNEED)


def _map(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            # A private writable mapping: Buffer.from_numpy copies what is read-only. Nothing is ever written.
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except ValueError:  # a file of zero bytes can't be mapped
        raise _damaged(path, "it is empty") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None


def _parse_header(path: Path, header: bytes) -> list[tuple[str, Any]]:
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        raise _damaged(path, "its header isn't JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header isn't a JSON object")
    return [(name, entry) for name, entry in entries.items() if name != "__metadata__"]


def _entry(path: Path, name: str, entry: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    try:
        dtype_name, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _damaged(path, f"its header is wrong at '{name}'") from None
    numbers = (*shape, start, stop)
    if not all(type(number) is int and number >= 0 for number in numbers) or start > stop:
        raise _damaged(path, f"its header is wrong at '{name}'")
    return name, str(dtype_name), shape, start, stop


def _cut_short(path: Path, expected_bytes: int, found_bytes: int) -> InputError:
    return InputError(
        f"{path} is cut short: it should have {expected_bytes} bytes and has {found_bytes}; download it again"
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} isn't a safetensors file or is damaged: {why}; download it again")
