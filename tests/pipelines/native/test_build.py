"""The compiled kernels are kept where the user's caches are, or for one process where there is no such place."""

from __future__ import annotations

import ctypes
import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from architectures.layers import kernels
from pipelines.errors import InputError
from pipelines.native import build

get_library: Callable[[], Path] = kernels.kernel_library.__wrapped__


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The libraries that were compiled, by a compiler that takes no time."""
    outputs: list[Path] = []

    def compile_at_once(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        outputs.append(Path(arguments[-1]))
        outputs[-1].write_bytes(b"library")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(build, "subprocess_run_mojo", compile_at_once)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return outputs


def set_home(monkeypatch: pytest.MonkeyPatch, home: Path | None) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", os.fspath(home))
        return

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        get_library()
    return str(caught.value)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_library_is_compiled_once(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, os.fspath(tmp_path))
    library = get_library()
    assert library.parent == (tmp_path / ".cache" if variable == "HOME" else tmp_path) / "graph-pipelines"
    assert library.read_bytes() == b"library"
    assert get_library() == library
    assert len(compiled) == 1
    assert [path.name for path in library.parent.iterdir()] == [library.name]


@pytest.mark.parametrize("home", ["none", "a file", "may not be read", "full"])
def test_without_a_home_the_library_is_this_process_s(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "temporary"))
    set_home(monkeypatch, None if home == "none" else tmp_path / home)
    if home == "may not be read":  # which root can't be kept from

        def exists(path: Path) -> bool:
            raise PermissionError(13, "Permission denied", os.fspath(path))

        monkeypatch.setattr(Path, "exists", exists)
    if home == "full":

        def replace(path: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device", os.fspath(target))

        monkeypatch.setattr(Path, "replace", replace)
    library = get_library()
    assert library.read_bytes() == b"library"
    assert library.parent.parent == tmp_path / "temporary"
    assert library.parent.stat().st_mode & 0o077 == 0


def test_no_folder_at_all(compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_home(monkeypatch, None)
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "nowhere"))
    message = refusal()
    assert os.fspath(tmp_path / "nowhere") in message and "XDG_CACHE_HOME" in message


def test_no_temporary_folder(compiled: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(prefix: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    set_home(monkeypatch, None)
    monkeypatch.setattr(build, "mkdtemp", find_none, raising=False)
    message = refusal()
    assert "No usable temporary directory" in message and "XDG_CACHE_HOME" in message


def test_a_chosen_folder_that_can_not_be_written_is_refused(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    message = refusal()
    assert os.fspath(tmp_path / "file") in message and "XDG_CACHE_HOME" in message and "Not a directory" in message


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "crash reporting is off\nImported from a.mojo:3:\na.mojo:40:5: error: bad\n  x +\nmojo: error: more\n",
            "a.mojo:40:5",
        ),
        ("Killed\n", "mojo ended with exit code 1"),
        ("", "mojo ended with exit code 1"),
    ],
)
def test_a_compiler_that_fails(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, expected: str
) -> None:
    def fail(arguments: list[str], check: bool = False, **_: Any) -> subprocess.CompletedProcess[str]:
        if check:
            raise subprocess.CalledProcessError(1, arguments, "", stderr)
        return subprocess.CompletedProcess(arguments, 1, "", stderr)

    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    monkeypatch.setattr(build, "subprocess_run_mojo", fail)
    message = refusal()
    assert "can't be compiled" in message and expected in message and "\n" not in message
    assert list((tmp_path / "graph-pipelines").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("error: Could not find `mojo` executable"), PermissionError(13, "no")])
def test_a_compiler_that_is_not_there(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(arguments: list[str], **_: Any) -> None:
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    monkeypatch.setattr(build, "subprocess_run_mojo", fail)
    message = refusal()
    assert "can't be compiled" in message and str(error) in message


def test_the_message_of_the_real_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.mojo").write_text("def f():\n    nonsense here\n")
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert "__init__.mojo:2:" in refusal()


@pytest.mark.slow
def test_a_library_is_linked_without_a_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "answer.mojo"
    source.write_text('@export("answer")\ndef answer() abi("C") -> Int:\n    return 42\n')
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert ctypes.CDLL(os.fspath(build.compile_library(source))).answer() == 42


def test_a_library_is_for_the_cpu_at_hand(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "library.mojo"
    source.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    names = set()
    for cpu in ("flags: sse", "flags: sse avx"):
        monkeypatch.setattr(build, "_cpu", lambda cpu=cpu: cpu)
        names.add(build.compile_library(source).name)
    assert len(names) == 2
