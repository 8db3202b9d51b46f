"""Writing of weights to the cache folder, tensor by tensor."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from kv_cache import format_bytes
from pipelines.errors import InputError
from pipelines.loading.weight_cache.files import HEADER_BYTES, TEMPORARY_SUFFIX, Metadata, make_room, size_limit
from pipelines.native.library import native_library

Array = npt.NDArray[Any]

ALIGNMENT_BYTES = 64
"""Kernels load the widest vectors from mapped weights."""
MIN_FREE_BYTES = 1 << 30
"""Room that is left on the disk for others."""
PADDING_PREFIX = "padding."
DTYPE_NAMES = {
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint16): "BF16",  # whose bits numpy holds as integers
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}
"""Types that can be kept, by safetensors' names."""


def checksum(array: Array) -> str:
    """Checksum of a C-contiguous array's bytes, computed on all cores."""
    function = native_library("quantize").checksum
    function.restype = ctypes.c_uint64
    return f"{function(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.nbytes)):016x}"


class CacheWriter:
    """Writes the tensors of one entry to a temporary file, which becomes the entry when the `with` block ends.

    Nothing that goes wrong is an error: `problem` says in one line why the entry is not kept, and the rest is ignored.
    A block that ends with an exception, or that added nothing, leaves what was there.
    """

    def __init__(self, path: Path | None, key: Mapping[str, str]) -> None:
        self.problem: str | None = None
        self._path, self._key = path, key
        self._file: IO[bytes] | None = None
        self._limit = 0
        self._entries: dict[str, dict[str, Any]] = {}
        self._checksums: dict[str, str] = {}
        self._end = 0

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._file is not None:
            try:
                self._finish(self._file)
            except OSError as failure:
                self._give_up(failure.strerror or str(failure))
        self._discard()

    @property
    def has_file(self) -> bool:
        """Whether something was added, and can be kept so far."""
        return self._file is not None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str, array: Array) -> None:
        """Appends a tensor, C-contiguous and of a type in DTYPE_NAMES; it may be changed afterwards."""
        assert array.flags.c_contiguous and name not in self._entries, name
        if self._path is None or self.problem is not None:
            return
        try:
            self._append(self._open(self._path), name, array)
        except (OSError, InputError) as error:
            self._give_up(getattr(error, "strerror", None) or str(error))

    def _open(self, path: Path) -> IO[bytes]:
        if self._file is None:
            self._limit = size_limit()
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own, so that processes that write the same entry don't disturb each other.
            self._file = NamedTemporaryFile(  # noqa: SIM115
                dir=path.parent, prefix=f"{path.stem}.", suffix=TEMPORARY_SUFFIX, delete=False
            )
            self._file.seek(HEADER_BYTES)
        return self._file

    def _append(self, file: IO[bytes], name: str, array: Array) -> None:
        padding = -self._end % ALIGNMENT_BYTES  # a tensor too: the format allows no gaps
        size = HEADER_BYTES + self._end + padding + array.nbytes
        if size > self._limit:
            raise InputError(f"they take more than {format_bytes(self._limit)}, the limit of the cache")
        if shutil.disk_usage(file.name).free < array.nbytes + MIN_FREE_BYTES:
            raise InputError(f"the disk has less than {format_bytes(array.nbytes + MIN_FREE_BYTES)} left")
        if padding:
            self._write(file, f"{PADDING_PREFIX}{len(self._entries)}", np.zeros(padding, np.uint8))
        self._write(file, name, array)
        self._checksums[name] = checksum(array)

    def _write(self, file: IO[bytes], name: str, array: Array) -> None:
        file.write(array.reshape(-1).view(np.uint8).data)
        start, self._end = self._end, self._end + array.nbytes
        self._entries[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, self._end],
        }

    def _finish(self, file: IO[bytes]) -> None:
        """Writes the header and moves the file to its place. A crash that loses written data is found by checksums."""
        assert self._path is not None
        metadata = Metadata(self._key, self._checksums).encode()
        header = json.dumps({"__metadata__": metadata, **self._entries}).encode()
        header_bytes = HEADER_BYTES - 8
        if len(header) > header_bytes:
            self._give_up(f"their names and shapes take more than {format_bytes(header_bytes)}")
            return
        file.seek(0)
        file.write(header_bytes.to_bytes(8, "little") + header.ljust(header_bytes))
        file.close()
        make_room(self._path.parent, self._path, HEADER_BYTES + self._end, self._limit)
        Path(file.name).replace(self._path)
        self._file = None

    def _give_up(self, reason: str) -> None:
        self.problem = f"the quantized weights are not kept for the next start: {' '.join(reason.split())}"
        self._discard()

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what is buffered may not fit on the disk either
                self._file.close()
            with suppress(OSError):
                Path(self._file.name).unlink()
            self._file = None
