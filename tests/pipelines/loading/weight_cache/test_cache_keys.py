"""By what kept weights are known: the key of a checkpoint, and checksums."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.loading.weight_cache import cache as weight_cache
from pipelines.loading.weight_cache.cache import checkpoint_key, package_hash
from pipelines.loading.weight_cache.writer import checksum

pytestmark = pytest.mark.slow  # the first run on a machine compiles the library


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[Path]:
    """Two files, with headers of 16 bytes."""
    paths = [tmp_path / name for name in ("b.safetensors", "a.safetensors")]
    for path in paths:
        path.write_bytes((16).to_bytes(8, "little") + path.name.ljust(16).encode() + b"values")
        os.utime(path, ns=(10**18, 10**18))
    return paths


def test_the_key_of_a_checkpoint_is_the_same_every_time(checkpoint: list[Path], tmp_path: Path) -> None:
    key = checkpoint_key(checkpoint, model="m", encoding="q4_0")
    assert key["model"] == "m" and key["encoding"] == "q4_0"
    assert checkpoint_key(checkpoint[::-1], encoding="q4_0", model="m") == key
    (tmp_path / "link").symlink_to(tmp_path)
    assert checkpoint_key([tmp_path / "link" / path.name for path in checkpoint], model="m", encoding="q4_0") == key
    assert all(isinstance(value, str) for value in key.values())


def write_at(path: Path, place: int, data: bytes, mtime_ns: int = 10**18) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "its header, in the same size and at the same time": lambda path: write_at(path, 20, b"!"),
    "its time": lambda path: write_at(path, 0, b"", 10**18 + 1),
    "its size": lambda path: write_at(path, 30, b"more"),
    "its length is absurd": lambda path: write_at(path, 0, b"\xff" * 8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_changes_the_key(checkpoint: list[Path], change: str) -> None:
    key = checkpoint_key(checkpoint)
    CHANGES[change](checkpoint[0])
    assert checkpoint_key(checkpoint) != key


def test_another_place_another_setting_and_other_code_change_the_key(
    checkpoint: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = checkpoint_key(checkpoint, encoding="q4_0")
    assert checkpoint_key(checkpoint, encoding="q4_0", head_encoding="q8_0") != key
    assert checkpoint_key(checkpoint[:1], encoding="q4_0") != key
    (tmp_path / "copy").mkdir()
    copies = [Path(shutil.copy2(path, tmp_path / "copy")) for path in checkpoint]
    assert checkpoint_key(copies, encoding="q4_0") != key
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "FORMAT_VERSION", "0")
        assert checkpoint_key(checkpoint, encoding="q4_0") != key
    for folder in ("LOADING", "NATIVE"):
        with monkeypatch.context() as patch:
            patch.setattr(weight_cache, folder, tmp_path)
            assert checkpoint_key(checkpoint, encoding="q4_0") != key


@pytest.mark.parametrize("num_bytes", [1, 7, 255, 256, 257, 1000, (1 << 20) - 1, (1 << 20) + 1, 3 << 20])
def test_every_change_of_a_byte_changes_the_checksum(num_bytes: int) -> None:
    random = np.random.default_rng(num_bytes)
    data = random.integers(0, 256, num_bytes, np.uint8)
    before = checksum(data)
    assert len(before) == 16 and checksum(data.copy()) == before
    for place in {0, num_bytes - 1, *random.integers(0, num_bytes, 20).tolist()}:
        data[place] ^= np.uint8(1 << random.integers(8))
        assert checksum(data) != before
        before = checksum(data)


def test_order_and_length_change_the_checksum() -> None:
    data = np.random.default_rng(5).integers(0, 256, 3 << 20, np.uint8)
    sums = [checksum(data), checksum(data[: 1 << 20]), checksum(np.roll(data, 1)), checksum(np.roll(data, 8))]
    sums += [checksum(np.roll(data, size)) for size in (256, 1 << 20)]
    sums += [checksum(np.zeros(size, np.uint8)) for size in (0, 1, 8, 256, 257, 1 << 20, 2 << 20)]
    assert len(set(sums)) == len(sums)


def test_the_code_of_an_architecture_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weight adapter changes values: in a package any file of it, else the module."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "someones_package").mkdir()
    for name in ("someones_package/__init__.py", "someones_package/adapter.py", "someones_module.py"):
        (tmp_path / name).write_text("")
    for module, file in (("someones_package.adapter", "someones_package/adapter.py"), ("someones_module",) * 2):
        importlib.import_module(module)
        before = package_hash(module)
        assert package_hash(module) == before
        (tmp_path / file).with_suffix(".py").write_text("changed = True")
        assert package_hash(module) != before
