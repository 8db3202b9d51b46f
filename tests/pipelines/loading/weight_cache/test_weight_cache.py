"""Weights that are kept on disk: what comes back, what is not trusted, and what happens to files and folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open

from pipelines.loading.weight_cache import files as cache_files
from pipelines.loading.weight_cache import writer as cache_writer
from pipelines.loading.weight_cache.cache import WeightCache
from pipelines.loading.weight_cache.files import HEADER_BYTES, files_in, size_limit, weights_folder

pytestmark = pytest.mark.slow  # the first run on a machine compiles the library

Array = npt.NDArray[Any]

KEY = {"model": "some/model", "encoding": "q4_0"}
WEIGHTS: dict[str, Array] = {
    "blocks": np.random.default_rng(1).integers(0, 256, (5, 18), np.uint8),  # 90 bytes: the next needs padding
    "norm": np.arange(7, dtype=np.float32),
    "bfloat16 bits": np.arange(2_000_001, dtype=np.uint16).reshape(3, -1),
    "experts": np.random.default_rng(2).integers(0, 256, (2, 3, 34), np.uint8),
    "none": np.zeros((0, 34), np.uint8),
    "scalar": np.array(2.5, np.float32),
    "half": np.ones(3, np.float16),
    "packed": np.arange(-70, 70, dtype=np.int8),
    "integers": np.arange(9, dtype=np.int32),
    "offsets": np.arange(9, dtype=np.int64),
}


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache_files.LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(cache_writer, "MIN_FREE_BYTES", 0)


def keep(folder: Path | None, key: dict[str, str] = KEY, weights: dict[str, Array] = WEIGHTS) -> str | None:
    """Keeps weights, and returns the problem."""
    with WeightCache.open(folder, key).writer() as writer:
        for name, array in weights.items():
            writer.add(name, array)
    return writer.problem


def holds(cache: WeightCache, weights: dict[str, Array] = WEIGHTS) -> bool:
    """Whether the cache has all of these weights, with the values that they should have, or none of them."""
    found = {name: cache.get(name, array.shape, array.dtype) for name, array in weights.items()}
    if all(array is None for array in found.values()):
        return False
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    return True


def entry(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_weights_come_back_aligned(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert not holds(WeightCache.open(folder, KEY))
    assert not folder.exists()
    assert keep(folder) is None
    cache = WeightCache.open(folder, KEY)
    assert holds(cache) and cache.problem is None
    for name, array in WEIGHTS.items():
        found = cache.get(name, array.shape, array.dtype)
        assert found is not None and found.flags.c_contiguous and found.flags.writeable
        assert found.ctypes.data % 64 == 0 or not found.size
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]


def test_a_weight_of_another_shape_or_type_is_not_there(tmp_path: Path) -> None:
    keep(tmp_path)
    cache = WeightCache.open(tmp_path, KEY)
    assert cache.get("blocks", [5, 18], "uint8") is not None
    assert cache.get("blocks", (18, 5), np.uint8) is None
    assert cache.get("blocks", (90,), np.uint8) is None
    assert cache.get("blocks", (5, 18), np.int8) is None
    assert cache.get("other", (5, 18), np.uint8) is None
    assert cache.get("padding.1", (38,), np.uint8) is None  # the file has it


def test_others_can_read_the_file(tmp_path: Path) -> None:
    keep(tmp_path)
    with safe_open(entry(tmp_path), framework="np") as file:
        for name, array in WEIGHTS.items():
            if name != "bfloat16 bits":
                np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)


def test_an_array_may_be_changed_after_it_was_added(tmp_path: Path) -> None:
    array = np.ones((4, 18), np.uint8)
    with WeightCache.open(tmp_path, KEY).writer() as writer:
        writer.add("a", array)
        array += 1
        writer.add("b", array)
    expected: dict[str, Array] = {"a": np.ones((4, 18), np.uint8), "b": np.full((4, 18), 2, np.uint8)}
    assert holds(WeightCache.open(tmp_path, KEY), expected)


def test_another_key_has_another_entry(tmp_path: Path) -> None:
    keep(tmp_path)
    other = KEY | {"encoding": "q8_0"}
    assert not holds(WeightCache.open(tmp_path, other))
    changed: dict[str, Array] = WEIGHTS | {"norm": np.zeros(7, np.float32)}
    keep(tmp_path, other, changed)
    assert holds(WeightCache.open(tmp_path, other), changed)
    assert holds(WeightCache.open(tmp_path, KEY))


def test_keys_are_compared_in_full(tmp_path: Path) -> None:
    """As if two keys had the same hash."""
    keep(tmp_path)
    file = entry(tmp_path)
    other = KEY | {"model": "other/model"}
    cache = WeightCache.open(tmp_path, other)
    with cache.writer() as writer:
        writer.add("norm", np.zeros(7, np.float32))
    (others,) = set(tmp_path.iterdir()) - {file}
    shutil.copy(file, others)
    cache = WeightCache.open(tmp_path, other)
    assert not holds(cache)
    assert cache.problem is not None and str(others) in cache.problem


def test_what_was_there_stays_when_more_is_added(tmp_path: Path) -> None:
    keep(tmp_path)
    more: dict[str, Array] = {"more": np.full((3, 3), 7, np.uint8), "norm": np.full(7, 2, np.float32)}
    assert keep(tmp_path, KEY, more) is None
    assert holds(WeightCache.open(tmp_path, KEY), WEIGHTS | more)


def test_a_writer_to_which_nothing_is_added_changes_nothing(tmp_path: Path) -> None:
    assert keep(tmp_path / "new", KEY, {}) is None
    assert not (tmp_path / "new").exists()
    keep(tmp_path)
    before = entry(tmp_path).stat()
    assert keep(tmp_path, KEY, {}) is None
    assert entry(tmp_path).stat().st_ino == before.st_ino


def test_a_start_that_fails_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), WeightCache.open(tmp_path, KEY).writer() as writer:
        writer.add("norm", WEIGHTS["norm"])
        raise KeyError("w")
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept() -> None:
    assert keep(None) is None
    assert not holds(WeightCache.open(None, KEY))


class Header(NamedTuple):
    """A file's header, and how many bytes of the file it is."""

    fields: dict[str, Any]
    num_bytes: int


def read_header(data: bytes) -> Header:
    num_bytes = int.from_bytes(data[:8], "little")
    return Header(json.loads(data[8 : 8 + num_bytes]), 8 + num_bytes)


def with_header(data: bytes, fields: Any) -> bytes:
    return data[:8] + json.dumps(fields).encode().ljust(HEADER_BYTES - 8) + data[HEADER_BYTES:]


def change_metadata(data: bytes, name: str, value: Any) -> bytes:
    fields = read_header(data).fields
    fields["__metadata__"][name] = value
    return with_header(data, fields)


def flip(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 16
    return bytes(changed)


def drop_tensor(data: bytes) -> bytes:
    fields = read_header(data).fields
    last = max((name for name in fields if name in WEIGHTS), key=lambda name: fields[name]["data_offsets"])
    end = fields.pop(last)["data_offsets"][0]
    return with_header(data, fields)[: HEADER_BYTES + end]


def swap_tensors(data: bytes) -> bytes:
    """Two weights of the same size, each with the other's values."""
    fields = read_header(data).fields
    fields["packed"], fields["half"] = fields["half"], fields["packed"]
    return with_header(data, fields)


def misalign(data: bytes) -> bytes:
    """A file that is right in all but that its tensors begin 8 bytes later."""
    return (HEADER_BYTES).to_bytes(8, "little") + data[8:HEADER_BYTES] + b" " * 8 + data[HEADER_BYTES:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short in its header": lambda data: data[:1000],
    "cut short in its length": lambda data: data[:5],
    "cut short by a byte": lambda data: data[:-1],
    "longer": lambda data: data + b"0",
    "zeros": lambda data: bytes(len(data)),
    "a header of absurd length": lambda data: b"\xff" * 8 + data[8:],
    "foreign": lambda data: b"#!/bin/sh\necho " + data[15:],
    "the first byte of weights": lambda data: flip(data, HEADER_BYTES),
    "the last byte of weights": lambda data: flip(data, len(data) - 1),
    "a byte in between": lambda data: flip(data, HEADER_BYTES + 3_000_001),
    "zeros at its end": lambda data: data[:-4096] + bytes(4096),
    "a header that is a list": lambda data: with_header(data, [1]),
    "no metadata": lambda data: with_header(data, {n: f for n, f in read_header(data).fields.items() if n in WEIGHTS}),
    "metadata that is a number": lambda data: with_header(data, read_header(data).fields | {"__metadata__": 5}),
    "no key": lambda data: change_metadata(data, "key", None),
    "a key that is a list": lambda data: change_metadata(data, "key", "[]"),
    "another key": lambda data: change_metadata(data, "key", json.dumps(KEY | {"more": ""})),
    "checksums that are no JSON": lambda data: change_metadata(data, "checksums", "{"),
    "a checksum that is a number": lambda data: change_metadata(data, "checksums", '{"norm": 5}'),
    "a wrong checksum": lambda data: change_metadata(data, "checksums", json.dumps(dict.fromkeys(WEIGHTS, "0" * 16))),
    "a tensor less": drop_tensor,
    "swapped tensors": swap_tensors,
    "misaligned tensors": misalign,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    keep(tmp_path)
    file = entry(tmp_path)
    data = file.read_bytes()
    file.write_bytes(DAMAGES[damage](data))
    cache = WeightCache.open(tmp_path, KEY)
    assert not holds(cache)
    assert cache.problem is not None and "made again" in cache.problem and "\n" not in cache.problem
    assert keep(tmp_path) is None
    assert holds(WeightCache.open(tmp_path, KEY))


def test_a_folder_in_the_entry_s_place(tmp_path: Path) -> None:
    keep(tmp_path)
    file = entry(tmp_path)
    file.unlink()
    file.mkdir()
    assert not holds(WeightCache.open(tmp_path, KEY))
    problem = keep(tmp_path)
    assert problem is not None and "directory" in problem
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("place", ["the folder is a file", "above it is a file"])
def test_a_folder_that_can_not_be_written_is_no_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "the folder is a file" else tmp_path / "file" / "folder"
    problem = keep(folder)
    assert problem is not None and "not kept for the next start: " in problem and "\n" not in problem
    assert not holds(WeightCache.open(folder, KEY))


class FullDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: Any, num_bytes: int) -> None:
        self._file, self._left, self.name = file, num_bytes, file.name

    def write(self, data: Any) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise OSError(28, "No space left on device", self.name)
        self._file.write(data)

    def seek(self, place: int) -> None:
        self._file.seek(place)

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("num_bytes", [0, 100, 3_000_000, sum(array.nbytes for array in WEIGHTS.values()) + 1000])
def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    make = tempfile.NamedTemporaryFile
    monkeypatch.setattr(
        cache_writer, "NamedTemporaryFile", lambda *args, **options: FullDisk(make(*args, **options), num_bytes)
    )
    problem = keep(tmp_path)
    assert problem == "the quantized weights are not kept for the next start: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_room_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "MIN_FREE_BYTES", shutil.disk_usage(tmp_path).total)
    problem = keep(tmp_path)
    assert problem is not None and "the disk has less than " in problem
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_is_too_long_is_no_error(tmp_path: Path) -> None:
    weights = {f"{i:05}{'x' * 1000}": np.zeros(64, np.uint8) for i in range(500)}
    problem = keep(tmp_path, KEY, weights)
    assert problem is not None and "names and shapes" in problem
    assert list(tmp_path.iterdir()) == []


def num_bytes_of(folder: Path, weights: dict[str, Array]) -> int:
    keep(folder / "measured", KEY, weights)
    return entry(folder / "measured").stat().st_size


@pytest.fixture
def aged(tmp_path: Path) -> Iterator[tuple[Path, list[dict[str, str]], int]]:
    """A folder of three entries of so many bytes, the first the least recently written."""
    size, folder = num_bytes_of(tmp_path, WEIGHTS), tmp_path / "folder"
    keys = [KEY | {"number": str(number)} for number in range(3)]
    for age, key in zip((300, 200, 100), keys, strict=True):
        known = set(folder.iterdir()) if folder.exists() else set()
        keep(folder, key)
        (file,) = set(folder.iterdir()) - known
        os.utime(file, (time.time() - age, time.time() - age))
    yield folder, keys, size


def kept(folder: Path, keys: list[dict[str, str]]) -> list[str]:
    entries = [cache_files.Metadata.read(file.path) for file in files_in(folder, ".safetensors")]
    found = [entry.key for entry in entries if entry is not None]
    return [key["number"] for key in keys if key in found]


@pytest.mark.parametrize(("limit", "expected"), [(4.1, "0123"), (3.9, "123"), (2.5, "23"), (1.1, "3"), (0.9, "012")])
def test_the_oldest_make_room(
    aged: tuple[Path, list[dict[str, str]], int], monkeypatch: pytest.MonkeyPatch, limit: float, expected: str
) -> None:
    folder, keys, size = aged
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, str(int(size * limit)))
    new = KEY | {"number": "3"}
    problem = keep(folder, new)
    assert "".join(kept(folder, [*keys, new])) == expected
    assert (problem is not None and "limit of the cache" in problem) == (limit < 1)


def test_an_entry_that_is_used_is_not_the_oldest(
    aged: tuple[Path, list[dict[str, str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, keys, size = aged
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, str(int(size * 3.5)))
    assert holds(WeightCache.open(folder, keys[0]))
    keep(folder, KEY | {"number": "3"})
    assert kept(folder, keys) == ["0", "2"]


def test_an_entry_that_is_made_again_does_not_count_twice(
    aged: tuple[Path, list[dict[str, str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, keys, size = aged
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, str(int(size * 3.5)))
    keep(folder, keys[2])
    assert kept(folder, keys) == ["0", "1", "2"]


def test_a_limit_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_limit() == 20 * 2**30  # without the variable
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "50GiB")
    assert size_limit() == 50 * 2**30
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "much")
    problem = keep(tmp_path)
    assert problem is not None and "'much'" in problem and cache_files.LIMIT_VARIABLE in problem


def test_a_mapped_entry_outlives_its_file(tmp_path: Path) -> None:
    keep(tmp_path)
    cache = WeightCache.open(tmp_path, KEY)
    entry(tmp_path).unlink()
    assert holds(cache)


def test_writers_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    one, other = WeightCache.open(tmp_path, KEY), WeightCache.open(tmp_path, KEY)
    with one.writer() as first, other.writer() as second:
        for name, array in WEIGHTS.items():
            first.add(name, array)
            second.add(name, array)
    assert first.problem is None and second.problem is None
    assert holds(WeightCache.open(tmp_path, KEY))
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_processes_that_were_killed_are_removed(tmp_path: Path) -> None:
    old, new, foreign = (tmp_path / name for name in ("a.part", "b.part", "c.txt"))
    for path in (old, new, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (time.time() - 2 * cache_files.ABANDONED_S,) * 2)
    keep(tmp_path)
    assert not old.exists() and new.exists() and foreign.exists()


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert weights_folder() == tmp_path / "graph-pipelines" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "graph-pipelines" / "weights"

    def has_none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", has_none)
    assert weights_folder() is None
