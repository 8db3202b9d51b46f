"""Memory that may be taken: the machine's, within the limits of the cgroups around this process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipelines.loading.memory import available_bytes

FREE = 64_000  # what the machine has


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))


def available(folder: Path, own_cgroups: str, **files: str | bytes) -> int:
    """Available bytes for a tree of files; `a__b__memory_max` is the file a/b/memory.max."""
    own = folder / "self_cgroup"
    own.write_text(own_cgroups)
    for name, content in files.items():
        path = folder / "cgroup" / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return available_bytes(folder / "cgroup", own)


STAT, BAD_STAT = "anon 7\ninactive_file 900\n", b"\xff 1\n\ninactive_file\ninactive_file -5\ninactive_file 1 2\n"
V1 = {"memory__memory_limit_in_bytes": "9000", "memory__memory_usage_in_bytes": "5000"}
V1_OWN = "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("own_cgroups", "files", "expected"),
    [
        ("0::/\n", {}, FREE),
        ("", {"memory_max": "9000\n", "memory_current": "5000\n"}, 4000),  # /proc says nothing
        ("0::/\n", {"memory_max": "9000\n", "memory_current": "5000\n"}, 4000),
        ("0::/\n", {"memory_max": "max\n", "memory_current": "5000\n"}, FREE),
        ("0::/\n", {"memory_max": "max", "memory_high": "8000", "memory_current": "5000"}, 3000),
        ("0::/\n", {"memory_max": "9000", "memory_high": "max", "memory_current": "5000"}, 4000),
        ("0::/\n", {"memory_max": "999999", "memory_current": "1"}, FREE),
        ("0::/\n", {"memory_max": "9000", "memory_current": "9500"}, 0),
        ("0::/\n", {"memory_max": "9000"}, 9000),  # what it uses can't be read
        # Files that are only cached are given back; no more than is used.
        ("0::/\n", {"memory_max": "9000", "memory_current": "5000", "memory_stat": STAT}, 4900),
        ("0::/\n", {"memory_max": "9000", "memory_current": "5", "memory_stat": "inactive_file 900\n"}, 9000),
        # The narrowest of a cgroup and those around it; what a container does not see of them is left out.
        ("0::/a/b\n", {"a__b__memory_max": "9000", "a__b__memory_current": "1000", "a__memory_max": "max"}, 8000),
        ("0::/a/b\n", {"a__b__memory_max": "max", "a__memory_max": "7000", "a__memory_current": "1000"}, 6000),
        ("0::/docker/abc\n", {"memory_max": "9000", "memory_current": "5000"}, 4000),
        ("0::/../other:x\n", {"memory_max": "9000", "memory_current": "5000"}, 4000),
        (V1_OWN, V1, 4000),
        (V1_OWN, V1 | {"memory__memory_stat": "inactive_file 1\ntotal_inactive_file 500\n"}, 4500),
        (V1_OWN, {"memory__docker__abc__memory_limit_in_bytes": "300"} | V1, 300),
        (V1_OWN, V1 | {"memory__memory_limit_in_bytes": str(2**63 - 4096)}, FREE),
        (V1_OWN, V1 | {"memory_max": "6000", "memory_current": "5000"}, 1000),
        # Nothing that makes sense.
        ("\0\n:::\nx\n0::a\0b", {"memory_max": b"\xff\xfe", "memory_current": "9" * 9999}, FREE),
        ("0::/\n", {"memory_max": "9000", "memory_current": "5", "memory_stat": BAD_STAT}, 8995),
        ("0::/\n", {"memory_max": "-1", "memory_high": "1.5", "memory_current": "5"}, FREE),
    ],
)
def test_limits_of_cgroups(tmp_path: Path, own_cgroups: str, files: dict[str, str | bytes], expected: int) -> None:
    assert available(tmp_path, own_cgroups, **files) == expected


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "nowhere", tmp_path / "nowhere") == FREE
    (tmp_path / "memory.max").mkdir()  # root may read all files, but no folder
    assert available_bytes(tmp_path, tmp_path) == FREE


def test_the_defaults_are_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 <= available_bytes() <= FREE
    monkeypatch.undo()
    assert 0 < available_bytes() <= psutil.virtual_memory().total
