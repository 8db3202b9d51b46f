"""Compilation of Mojo sources, once for each version of them and of MAX; results stay in the user's cache folder."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from mojo.run import subprocess_run_mojo

from pipelines.errors import InputError
from pipelines.native.link import build_without_c_compiler, has_c_compiler


def compile_package(folder: Path) -> Path:
    """Compiles a folder of kernels to a package for graphs, in about ten seconds.

    MAX itself would compile a folder of sources again for every graph.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable, or the sources can't be compiled.
    """
    return _compiled(["precompile", str(folder)], sorted(folder.glob("*.mojo")), f"{folder.name}_", ".mojoc")


def compile_library(source: Path) -> Path:
    """Compiles a file and those beside it that it imports to a shared library, in about six seconds.

    It is for the CPU at hand, which is part of its name: several machines may share a home.

    Raises:
        InputError: As `compile_package`.
    """
    sources = sorted(source.parent.glob("*.mojo"))
    return _compiled(["build", "--emit", "shared-lib", str(source)], sources, f"{source.stem}_", ".so", _cpu())


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


def _compiled(command: Sequence[str], sources: Sequence[Path], prefix: str, suffix: str, target: str = "") -> Path:
    content = f"{version('max')}{target}".encode() + b"".join(path.read_bytes() for path in sources)
    name = f"{prefix}{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return _compile_into(Path(chosen or Path.home() / ".cache") / "graph-pipelines", name, command)
    except RuntimeError:  # the user has no home
        pass
    except OSError as error:
        if chosen:
            raise _not_writable(chosen, error) from None
    # The home is missing or not writable, as in containers that run as another user: ten seconds per start are better
    # than a refusal. The folder has no fixed name under /tmp, where another user could put a library.
    return _compile_for_this_process(name, command)


def _compile_into(folder: Path, name: str, command: Sequence[str]) -> Path:
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:  # then renamed, so that no process reads half a file
            _compile(Path(temporary) / name, command).replace(library)
    return library


def _compile_for_this_process(name: str, command: Sequence[str]) -> Path:
    try:
        folder = Path(mkdtemp(prefix="graph-pipelines-"))
    except OSError as error:
        raise _not_writable("a temporary folder", error) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _compile(folder / name, command)


def _compile(library: Path, command: Sequence[str]) -> Path:
    run_mojo([*command, "-o", str(library)])
    return library


def _not_writable(folder: str, error: OSError) -> InputError:
    """Error that names the folder that is not writable, or the one that was asked for."""
    reason = f"{error.filename or folder} ({error.strerror})"
    return InputError(f"can't write {reason}: set XDG_CACHE_HOME to a folder of yours")
