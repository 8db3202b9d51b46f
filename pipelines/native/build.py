"""Compilation of Mojo sources, once for each version of them and of MAX; results stay in the user's cache folder."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from mojo.run import subprocess_run_mojo

from pipelines.errors import InputError
from pipelines.native.link import build_without_c_compiler, has_c_compiler

Make = Callable[[Path], object]
"""Writes the file of this path."""


def compile_package(folder: Path) -> Path:
    """Compiles a folder of kernels to a package for graphs, in about ten seconds.

    MAX itself would compile a folder of sources again for every graph.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable, or the sources can't be compiled.
    """
    name = _file_name(sorted(folder.glob("*.mojo")), f"{folder.name}_", ".mojoc")
    return _kept(name, lambda path: run_mojo(["precompile", str(folder), "-o", str(path)]))


def compile_library(source: Path) -> Path:
    """Compiles a file and those beside it that it imports to a shared library, in about six seconds.

    It is for the CPU at hand, which is part of its name: several machines may share a home.

    Raises:
        InputError: As `compile_package`.
    """
    command = ["build", "--emit", "shared-lib", str(source)]
    return _kept(_library_name(source), lambda path: run_mojo([*command, "-o", str(path)]))


def keep_library(source: Path, compiled: Path) -> Path:
    """Does what `compile_library` does, by copying a library that was compiled elsewhere from the same sources.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable.
    """
    return _kept(_library_name(source), lambda path: shutil.copyfile(compiled, path))


def run_mojo(command: Sequence[str]) -> str:
    """Runs Mojo's command line, and returns what it prints.

    Raises:
        InputError: It fails, which the sources or the installation must be the reason of.
    """
    try:
        if "shared-lib" in command and not has_c_compiler():
            done = build_without_c_compiler(command)
        else:
            done = subprocess_run_mojo([*command], capture_output=True, text=True, errors="replace")
    except (OSError, RuntimeError) as error:  # mojo is not there, or can't be run
        raise InputError(f"the Mojo kernels can't be compiled ({error}): install this package and max again") from None
    if done.returncode != 0:
        errors = (line for line in done.stderr.splitlines() if "error:" in line)
        reason = next(errors, f"mojo ended with exit code {done.returncode}")
        raise InputError(f"the Mojo kernels can't be compiled: {reason}")
    return str(done.stdout)


def _cpu() -> str:
    """The instructions of the CPU at hand, for which libraries are compiled."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _library_name(source: Path) -> str:
    return _file_name(sorted(source.parent.glob("*.mojo")), f"{source.stem}_", ".so", _cpu())


def _file_name(sources: Sequence[Path], prefix: str, suffix: str, target: str = "") -> str:
    content = f"{version('max')}{target}".encode() + b"".join(path.read_bytes() for path in sources)
    return f"{prefix}{hashlib.sha256(content).hexdigest()[:16]}{suffix}"


def _kept(name: str, make: Make) -> Path:
    """Returns the file of this name in the user's cache folder, made if it is not there."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return _make_in(Path(chosen or Path.home() / ".cache") / "graph-pipelines", name, make)
    except RuntimeError:  # the user has no home
        pass
    except OSError as error:
        if chosen:
            raise _not_writable(chosen, error) from None
    # The home is missing or not writable, as in containers that run as another user: ten seconds per start are better
    # than a refusal. The folder has no fixed name under /tmp, where another user could put a library.
    return _make_for_this_process(name, make)


def _make_in(folder: Path, name: str, make: Make) -> Path:
    file = folder / name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:  # then renamed, so that no process reads half a file
            make(Path(temporary) / name)
            (Path(temporary) / name).replace(file)
    return file


def _make_for_this_process(name: str, make: Make) -> Path:
    try:
        folder = Path(mkdtemp(prefix="graph-pipelines-"))
    except OSError as error:
        raise _not_writable("a temporary folder", error) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make(folder / name)
    return folder / name


def _not_writable(folder: str, error: OSError) -> InputError:
    """Error that names the folder that is not writable, or the one that was asked for."""
    reason = f"{error.filename or folder} ({error.strerror})"
    return InputError(f"can't write {reason}: set XDG_CACHE_HOME to a folder of yours")
