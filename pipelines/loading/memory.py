"""Memory that this process may still take on the host: the machine's free memory, within the limits of its cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_bytes(root: Path = CGROUP_ROOT, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Returns the smallest of the machine's free memory and that of each cgroup of this process, up to the root.

    A limit that is absent or can't be read is no limit.

    Args:
        root: The folder where the cgroup hierarchies are mounted.
        own_cgroups: The file that names the cgroups of this process.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    free = [int(psutil.virtual_memory().available)]
    for folder, files in _cgroups(root, own_cgroups):
        limits = [limit for name in files.limits if (limit := _number(_read(folder / name))) is not None]
        if limits:
            free.append(min(limits) - _used_bytes(folder, files))
    return max(0, min(free))


@dataclass(frozen=True)
class _Files:
    """Names of the files that describe a cgroup's memory, and of the line of memory.stat that can be reclaimed."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def _cgroups(root: Path, own_cgroups: Path) -> Iterator[tuple[Path, _Files]]:
    """Yields the cgroups of this process, innermost first; the files of those that a container can't see don't exist.

    A container sees its own cgroup as the root, whatever path the file names.
    """
    paths = {"": "/", "memory": "/"}  # of version 2, which names no controllers, and of version 1
    for line in _read(own_cgroups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths |= {name: path for name in controllers.split(",") if name in paths}
    for folder, files, path in ((root, _V2, paths[""]), (root / "memory", _V1, paths["memory"])):
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield folder.joinpath(*parts[:depth]), files


def _used_bytes(folder: Path, files: _Files) -> int:
    """Returns the cgroup's usage, less cached files that the kernel drops before it refuses memory."""
    lines = (line.partition(" ") for line in _read(folder / "memory.stat").splitlines())
    reclaimable = sum(_number(value) or 0 for name, _, value in lines if name == files.reclaimable)
    return max(0, (_number(_read(folder / files.usage)) or 0) - reclaimable)


def _number(text: str) -> int | None:
    """Returns a count of bytes; None for other text: "max", or nothing at all."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return ""
