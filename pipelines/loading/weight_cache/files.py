"""The user's cache folder: compiled kernels, and weights as they were quantized, of which the oldest are removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from pipelines.config import parse_memory
from pipelines.errors import InputError

HEADER_BYTES = 1 << 20
"""Where the tensors of an entry begin: the header, which is known last, is written into the space before them."""
LIMIT_VARIABLE = "GRAPH_PIPELINES_CACHE_LIMIT"
DEFAULT_LIMIT = "20GiB"
ENTRY_SUFFIX = ".safetensors"
TEMPORARY_SUFFIX = ".part"
ABANDONED_S = 3600.0
"""A temporary file that nobody has written to for so long belongs to a process that was killed."""


def cache_folder() -> Path | None:
    """The project's folder in XDG_CACHE_HOME or ~/.cache, which may not exist; None for a user who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graph-pipelines"
    except RuntimeError:
        return None


def weights_folder() -> Path | None:
    """The folder of weights, as `cache_folder`."""
    folder = cache_folder()
    return None if folder is None else folder / "weights"


def graphs_folder() -> Path | None:
    """The folder of compiled graphs, as `cache_folder`."""
    folder = cache_folder()
    return None if folder is None else folder / "graphs"


def size_limit() -> int:
    """Bytes that weights may take on disk in all: GRAPH_PIPELINES_CACHE_LIMIT, for example 50GiB, or else 20 GiB.

    Raises:
        InputError: The variable is no amount of memory.
    """
    try:
        return parse_memory(os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT)
    except InputError as error:
        raise InputError(f"{LIMIT_VARIABLE}: {error}") from None


@dataclass(frozen=True)
class CacheFile:
    """An entry of the cache folder: a file, or a folder of files.

    used_at: seconds since 1970, of the last use, or of writing if that is not known.
    """

    path: Path
    num_bytes: int
    used_at: float


def files_in(folder: Path | None, *suffixes: str) -> list[CacheFile]:
    """The files with these suffixes, the least recently used first; none if the folder can't be read."""
    return sorted(_files_in(folder, suffixes), key=lambda file: (file.used_at, file.path))


def _files_in(folder: Path | None, suffixes: tuple[str, ...]) -> Iterator[CacheFile]:
    if folder is None:
        return
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # removed meanwhile
                if path.suffix in suffixes and path.is_file():
                    found = path.stat()
                    yield CacheFile(path, found.st_size, found.st_mtime)


def folders_in(folder: Path | None) -> list[CacheFile]:
    """The folders in a folder, each as one entry, the least recently used first; none if it can't be read."""
    entries = []
    with suppress(OSError):
        for path in folder.iterdir() if folder is not None else ():
            with suppress(OSError):  # removed meanwhile
                if path.is_dir():
                    num_bytes = sum(file.stat().st_size for file in path.iterdir())
                    entries.append(CacheFile(path, num_bytes, path.stat().st_mtime))
    return sorted(entries, key=lambda entry: (entry.used_at, entry.path))


def make_room(folder: Path, path: Path, num_bytes: int, limit: int) -> None:
    """Removes the least recently used entries, so that one of this size has room at `path`; and abandoned files."""
    for file in files_in(folder, TEMPORARY_SUFFIX):
        if file.used_at < time() - ABANDONED_S:
            remove(file)
    others = [file for file in files_in(folder, ENTRY_SUFFIX) if file.path != path]
    excess = sum(file.num_bytes for file in others) + num_bytes - limit
    for file in others:
        if excess <= 0:
            break
        remove(file)
        excess -= file.num_bytes


def remove(file: CacheFile) -> bool:
    """Removes an entry; returns whether it is gone. Processes that have it mapped keep what they have."""
    try:
        if file.path.is_dir():
            shutil.rmtree(file.path)
        else:
            file.path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Metadata:
    """The description inside an entry. key: what its weights follow from. checksums: by tensor."""

    key: Mapping[str, str]
    checksums: Mapping[str, str]

    def encode(self) -> dict[str, str]:
        """The fields of a safetensors header's __metadata__."""
        return {"key": json.dumps(dict(self.key)), "checksums": json.dumps(dict(self.checksums))}

    @classmethod
    def read(cls, path: Path) -> Metadata | None:
        """Reads that of an entry; None if the file can't be read or is no entry."""
        try:
            with path.open("rb") as file:
                num_bytes = int.from_bytes(file.read(8), "little")
                metadata = json.loads(file.read(min(num_bytes, HEADER_BYTES)))["__metadata__"]
            fields = [json.loads(metadata[name]) for name in ("key", "checksums")]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return cls(*fields) if all(_is_text_by_text(field) for field in fields) else None


def _is_text_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
