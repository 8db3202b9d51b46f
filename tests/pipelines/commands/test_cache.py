"""The list of what is kept on disk, and its removal."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from command import Caller

from pipelines.loading.artifacts.manifest import Manifest
from pipelines.loading.weight_cache import files as cache_files
from pipelines.loading.weight_cache import writer as cache_writer
from pipelines.loading.weight_cache.cache import WeightCache

KEYS = {
    "old": {"model": "some/model", "encoding": "q4_0", "head_encoding": "q8_0"},
    "new": {"model": "/path/of [a] model", "encoding": "q6_k"},
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Caller:
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    monkeypatch.delenv(cache_files.LIMIT_VARIABLE, raising=False)
    return Caller(capsys, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of two entries of weights, two of kernels, and things that are none."""
    folder = tmp_path / "graph-pipelines"
    monkeypatch.setattr(cache_writer, "checksum", lambda array: "0")  # without its library
    for age_s, (name, key) in zip((10**6, 10**3), KEYS.items(), strict=True):
        cache = WeightCache.open(folder / "weights", key)
        with cache.writer() as writer:
            writer.add("w", np.zeros(2**20 * (3 if name == "old" else 1), np.uint8))
        assert writer.problem is None
        (file,) = (path for path in (folder / "weights").iterdir() if path.stat().st_mtime > time.time() - 500)
        file = file.rename(file.with_stem(name))
        os.utime(file, (time.time() - age_s,) * 2)
    (folder / "kernels_0123.mojoc").write_bytes(b"0" * 2048)
    (folder / "quantize_4567.so").write_bytes(b"0" * 512)
    (folder / "mine.txt").touch()
    (folder / "weights" / "mine.txt").touch()
    (folder / "weights" / "now.part").touch()
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


ALL = {"kernels_0123.mojoc", "quantize_4567.so", "old.safetensors", "new.safetensors"}
OTHERS = {"mine.txt", "now.part"}


def test_the_list(call: Caller, folder: Path) -> None:
    result = call("cache")
    assert result.code == 0
    lines = result.out.splitlines()
    rows = {name: next(line for line in lines if name in line) for name in ("old", "new", "kernels_0123", "quantize_")}
    assert all(part in rows["old"] for part in ("some/model", "q4_0, head q8_0", "4 MiB"))
    assert all(part in rows["new"] for part in ("/path/of [a] model", "q6_k", "2 MiB"))
    assert datetime.fromtimestamp(time.time() - 10**6).strftime("%Y-%m-%d") in rows["old"]
    assert "compiled kernels" in rows["kernels_0123"] and "2 KiB" in rows["kernels_0123"]
    assert "compiled kernels" in rows["quantize_"] and "512 bytes" in rows["quantize_"]
    assert lines[-1] == f"6.002 MiB in {folder}; weights take at most 20 GiB"
    assert "mine" not in result.out and "now" not in result.out
    assert names_in(folder) == ALL | OTHERS


def test_graphs_are_listed_and_removed_as_folders(call: Caller, tmp_path: Path) -> None:
    whole, damaged = (tmp_path / "graph-pipelines" / "graphs" / name for name in ("89ab", "cdef"))
    for folder in (whole, damaged):
        folder.mkdir(parents=True)
        (folder / "decoder.mef").write_bytes(b"0" * 4096)
    run = {"architecture": "SomeModel", "quantization_encoding": "bfloat16"}
    Manifest(run, frozenset(), {}, {}).write(whole)
    rows = {name: next(line for line in call("cache").out.splitlines() if name in line) for name in ("89ab", "cdef")}
    assert all(part in rows["89ab"] for part in ("graphs of SomeModel", "bfloat16", "KiB"))
    assert "damaged graphs" in rows["cdef"] and "4 KiB" in rows["cdef"]
    assert call("cache", "--clear", "89ab").out.startswith("Removed 1 of 2 entries")
    assert not whole.exists() and damaged.exists()
    assert call("cache", "--clear").out == "Removed 1 of 1 entries, 4 KiB\n"
    assert not damaged.exists()


def test_an_entry_that_is_damaged_is_listed(call: Caller, folder: Path) -> None:
    (folder / "weights" / "old.safetensors").write_bytes(b"nothing")
    assert "damaged weights" in call("cache").out
    assert call("cache", "--clear", "old").code == 0
    assert names_in(folder) == (ALL | OTHERS) - {"old.safetensors"}


def test_all_are_removed(call: Caller, folder: Path) -> None:
    result = call("cache", "--clear")
    assert (result.code, result.out) == (0, "Removed 4 of 4 entries, 6.002 MiB\n")
    assert names_in(folder) == OTHERS
    result = call("cache")
    assert (result.code, result.out) == (0, f"Nothing is in {folder}\n")
    assert call("cache", "--clear").out == "Removed 0 of 0 entries, 0 bytes\n"


@pytest.mark.parametrize("name", ["some/model", "old"])
def test_one_is_removed_by_its_name_or_model(call: Caller, folder: Path, name: str) -> None:
    result = call("cache", "--clear", name)
    assert (result.code, result.out) == (0, "Removed 1 of 4 entries, 4 MiB\n")
    assert names_in(folder) == (ALL | OTHERS) - {"old.safetensors"}


def test_several_are_removed(call: Caller, folder: Path) -> None:
    result = call("cache", "--clear", "kernels_0123", "new")
    assert (result.code, result.out) == (0, "Removed 2 of 4 entries, 2.002 MiB\n")
    assert names_in(folder) == {"quantize_4567.so", "old.safetensors"} | OTHERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clear", "new", "other"), "the cache has no entry 'other': see pipelines cache"),
        (("--clear", "mine"), "the cache has no entry 'mine': see pipelines cache"),
        (("new",), "names are for --clear: see pipelines cache --help"),
    ],
)
def test_what_can_not_be_done_changes_nothing(
    call: Caller, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = call("cache", *arguments)
    assert (result.code, result.err) == (2, f"error: {message}\n")
    assert names_in(folder) == ALL | OTHERS


def test_what_a_killed_process_left_is_removed(call: Caller, folder: Path) -> None:
    left = folder / "weights" / "old.abc.part"
    left.write_bytes(b"0" * 100)
    assert "unfinished" not in call("cache").out
    os.utime(left, (time.time() - 2 * cache_files.ABANDONED_S,) * 2)
    assert "unfinished weights" in call("cache").out
    assert call("cache", "--clear").code == 0
    assert names_in(folder) == OTHERS


def test_a_file_that_can_not_be_removed_is_named(call: Caller, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:  # root may remove anything
        if path.stem == "old":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = call("cache", "--clear")
    assert result.code == 2 and str(folder / "weights" / "old.safetensors") in result.err
    assert result.out == "Removed 3 of 4 entries, 2.002 MiB\n"
    assert names_in(folder) == {"old.safetensors"} | OTHERS


def test_without_a_folder_and_with_a_wrong_limit(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("cache").out == f"Nothing is in {tmp_path / 'graph-pipelines'}\n"
    monkeypatch.setenv(cache_files.LIMIT_VARIABLE, "much")
    result = call("cache")
    assert result.code == 2 and cache_files.LIMIT_VARIABLE in result.err


def test_without_a_home(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", has_none)
    assert call("cache").out == "Nothing is in the cache: you have no home\n"
