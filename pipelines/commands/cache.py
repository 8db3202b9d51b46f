"""The `pipelines cache` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from time import time

from kv_cache import format_bytes
from pipelines.errors import InputError
from pipelines.loading.artifacts.manifest import Manifest
from pipelines.loading.weight_cache.files import (
    ABANDONED_S,
    ENTRY_SUFFIX,
    TEMPORARY_SUFFIX,
    CacheFile,
    Metadata,
    cache_folder,
    files_in,
    folders_in,
    graphs_folder,
    remove,
    size_limit,
    weights_folder,
)

KERNEL_SUFFIXES = (".mojoc", ".so")


@dataclass(frozen=True)
class Entry:
    """A file of the cache, as it is listed. content: the model, or what else the file holds."""

    file: CacheFile
    content: str
    encoding: str = ""

    @property
    def name(self) -> str:
        """Name by which it can be removed."""
        return self.file.path.stem


def show_cache() -> None:
    """Prints a table of the entries on stdout.

    Raises:
        InputError: GRAPH_PIPELINES_CACHE_LIMIT is no amount of memory.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    entries, limit = _entries(), format_bytes(size_limit())
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    if not entries:
        print(f"Nothing is in {cache_folder() or 'the cache: you have no home'}")
        return
    table = Table("name", "content", "encoding", "size", "last use", box=box.SIMPLE)
    for entry in entries:
        used_at = datetime.fromtimestamp(entry.file.used_at).strftime("%Y-%m-%d %H:%M")
        size = format_bytes(entry.file.num_bytes)
        table.add_row(*map(_escaped, (entry.name, entry.content, entry.encoding, size, used_at)))
    console.print(table)
    total = sum(entry.file.num_bytes for entry in entries)
    print(f"{format_bytes(total)} in {cache_folder()}; weights take at most {limit}")


def clear_cache(names: Sequence[str]) -> None:
    """Removes the entries with these names or of these models, or all, and prints what was freed.

    Kernels are compiled again when they are needed, which takes some ten seconds, and graphs, which may take minutes.

    Raises:
        InputError: There is no such entry, or one can't be removed.
    """
    entries = _entries()
    for name in names:
        if all(name not in (entry.name, entry.content) for entry in entries):
            raise InputError(f"the cache has no entry '{name}': see pipelines cache")
    chosen = [entry for entry in entries if not names or entry.name in names or entry.content in names]
    left = [entry for entry in chosen if not remove(entry.file)]
    freed = sum(entry.file.num_bytes for entry in chosen if entry not in left)
    print(f"Removed {len(chosen) - len(left)} of {len(entries)} entries, {format_bytes(freed)}")
    if left:
        raise InputError(f"can't remove {left[0].file.path}: its folder is not yours to write")


def _entries() -> list[Entry]:
    """All entries: kernels, graphs, weights, and what was left by processes that were killed; oldest first."""
    kernels = [Entry(file, "compiled kernels") for file in files_in(cache_folder(), *KERNEL_SUFFIXES)]
    weights = [_weights(file) for file in files_in(weights_folder(), ENTRY_SUFFIX)]
    unfinished = [Entry(file, "unfinished weights") for file in files_in(weights_folder(), TEMPORARY_SUFFIX)]
    graphs = [_graphs(file) for file in folders_in(graphs_folder())]
    return kernels + graphs + weights + [entry for entry in unfinished if entry.file.used_at < time() - ABANDONED_S]


def _weights(file: CacheFile) -> Entry:
    metadata = Metadata.read(file.path)
    if metadata is None:
        return Entry(file, "damaged weights")
    encoding, head = (metadata.key.get(name, "") for name in ("encoding", "head_encoding"))
    return Entry(file, metadata.key.get("model", "weights"), f"{encoding}, head {head}" if head else encoding)


def _graphs(file: CacheFile) -> Entry:
    try:
        run = Manifest.read(file.path).run
    except InputError:
        return Entry(file, "unfinished or damaged graphs")
    return Entry(file, f"graphs of {run.get('architecture', 'a model')}", run.get("quantization_encoding", ""))


def _escaped(text: str) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape

    return escape(text)
