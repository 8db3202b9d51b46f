"""Weights that were quantized while loading, kept on disk in their final form so that the next start maps them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import InputError
from pipelines.loading.safetensors_file import MAX_HEADER_BYTES, read_tensors
from pipelines.loading.weight_cache.files import ENTRY_SUFFIX, Metadata
from pipelines.loading.weight_cache.writer import ALIGNMENT_BYTES, CacheWriter, checksum

Array = npt.NDArray[Any]

FORMAT_VERSION = "1"
LOADING, NATIVE = Path(__file__).parents[1], Path(__file__).parents[2] / "native"


def checkpoint_key(paths: Sequence[Path], **settings: str) -> dict[str, str]:
    """Returns all that a checkpoint's weights follow from: its files, our code, settings such as model and encoding.

    A file is known by its place, size, time of change, and its header.

    Raises:
        OSError: A file can't be read.
    """
    files = []
    for path in sorted(path.resolve() for path in paths):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            header_bytes = min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)
            header_hash = hashlib.sha256(file.read(header_bytes)).hexdigest()
        files.append([os.fspath(path), status.st_size, status.st_mtime_ns, header_hash])
    return settings | {"files": json.dumps(files), "code": _code_hash(), "version": FORMAT_VERSION}


def package_hash(module: str) -> str:
    """Hash of the sources of the package that a module is in, an architecture's for example: adapters change values."""
    package = sys.modules[module.partition(".")[0]]
    source = Path(package.__file__ or sys.modules[module].__file__ or "")  # a namespace package has no file
    return _hash_of(source.parent.rglob("*.py") if source.name == "__init__.py" else [source])


def _code_hash() -> str:
    """Hash of the sources that make weights of a checkpoint's tensors."""
    return _hash_of([*LOADING.rglob("*.py"), *NATIVE.glob("*.mojo")])


def _hash_of(sources: Iterable[Path]) -> str:
    content = b"".join(path.read_bytes() for path in sorted(sources))
    return hashlib.sha256(content).hexdigest()


class WeightCache:
    """One entry: the weights of one checkpoint in one encoding, or those that are still to be made.

    problem: why an entry that was there is not used, in one line.
    """

    def __init__(self, path: Path | None, key: Mapping[str, str]) -> None:
        self.problem: str | None = None
        self._path, self._key = path, dict(key)
        self._arrays: dict[str, Array] = {}

    @classmethod
    def open(cls, folder: Path | None, key: Mapping[str, str]) -> WeightCache:
        """Maps the entry of this key, and compares its checksums on all cores; one that is damaged counts as empty.

        Args:
            folder: The folder of all entries, which may not exist; None: nothing is found, and nothing is kept.
            key: All that the weights follow from.  `checkpoint_key`

        Raises:
            InputError: The Mojo code that computes checksums can't be compiled.
        """
        name = hashlib.sha256(json.dumps(sorted(key.items())).encode()).hexdigest()[:16]
        cache = cls(None if folder is None else folder / f"{name}{ENTRY_SUFFIX}", key)
        if cache._path is not None and cache._path.exists():
            cache._map(cache._path)
        return cache

    def get(self, name: str, shape: Sequence[int], dtype: npt.DTypeLike) -> Array | None:
        """Returns a weight, a view of the mapped file at a multiple of 64 bytes; None if it is not there like this."""
        array = self._arrays.get(name)
        if array is None or array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
            return None
        return array

    @contextmanager
    def writer(self) -> Iterator[CacheWriter]:
        """Returns a context that keeps the weights that are added in it, and those that were there.

        After it, `problem` of the writer says why they are not kept.
        """
        with CacheWriter(self._path, self._key) as writer:
            yield writer
            if writer.has_file:
                for name, array in self._arrays.items():
                    if name not in writer:
                        writer.add(name, array)

    def _map(self, path: Path) -> None:
        metadata = Metadata.read(path)
        if metadata is None or metadata.key != self._key:
            self.problem = f"{path} is damaged or belongs to others: the weights are made again"
            return
        try:
            arrays = {tensor.name: tensor.array() for tensor in read_tensors(path) if tensor.name in metadata.checksums}
        except InputError:
            arrays = {}
        if len(arrays) < len(metadata.checksums) or not all(
            array.ctypes.data % ALIGNMENT_BYTES == 0 and checksum(array) == metadata.checksums[name]
            for name, array in arrays.items()
        ):
            self.problem = f"{path} is damaged: the weights are made again"
            return
        self._arrays = arrays
        with suppress(OSError):
            os.utime(path)  # the least recently used entries are removed first
