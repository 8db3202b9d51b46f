"""The library of our Mojo kernels, compiled for the graphs that use them."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from max.graph import DeviceRef
from mojo.run import subprocess_run_mojo

from pipelines.errors import InputError

SOURCES = Path(__file__).parents[1] / "kernels"


def extensions(devices: Sequence[DeviceRef]) -> list[Path]:
    """Custom extensions of a graph on these devices; our kernels are for the CPU."""
    return [kernel_library()] if any(device.is_cpu() for device in devices) else []


@functools.cache
def byte_instructions() -> str:
    """Names the instructions that products of bytes are computed with on this CPU, such as `avx512-vnni`.

    The kernels choose them by the target they are compiled for, so that a program is compiled, in a second or two.

    Raises:
        InputError: The program can't be compiled.
    """
    with TemporaryDirectory() as folder:
        program = Path(folder) / "instructions.mojo"
        program.write_text("from kernels.dot_bytes import INSTRUCTIONS\n\n\ndef main():\n    print(INSTRUCTIONS)\n")
        return _run_mojo(["run", "-I", str(SOURCES.parent), str(program)]).strip()


@functools.cache
def kernel_library() -> Path:
    """Compiles the kernels, once for each version of them and of MAX, in about ten seconds; the result stays on disk.

    MAX itself would compile a folder of sources again for every graph.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable, or the kernels can't be compiled.
    """
    content = version("max").encode() + b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.mojo")))
    name = f"kernels_{hashlib.sha256(content).hexdigest()[:16]}.mojoc"
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return _compile_into(Path(chosen or Path.home() / ".cache") / "graph-pipelines", name)
    except RuntimeError:  # the user has no home
        pass
    except OSError as error:
        if chosen:
            raise _not_writable(chosen, error) from None
    # The home is missing or not writable, as in containers that run as another user: ten seconds per start are better
    # than a refusal. The folder has no fixed name under /tmp, where another user could put a library.
    return _compile_for_this_process(name)


def _compile_into(folder: Path, name: str) -> Path:
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:  # then renamed, so that no process reads half a file
            _compile(Path(temporary) / name).replace(library)
    return library


def _compile_for_this_process(name: str) -> Path:
    try:
        folder = Path(mkdtemp(prefix="graph-pipelines-"))
    except OSError as error:
        raise _not_writable("a temporary folder", error) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _compile(folder / name)


def _compile(library: Path) -> Path:
    _run_mojo(["precompile", str(SOURCES), "-o", str(library)])
    return library


def _run_mojo(command: list[str]) -> str:
    """Returns what it prints."""
    try:
        done = subprocess_run_mojo(command, capture_output=True, text=True, errors="replace")
    except (OSError, RuntimeError) as error:  # mojo is not there, or can't be run
        raise InputError(f"the Mojo kernels can't be compiled ({error}): install this package and max again") from None
    if done.returncode != 0:
        errors = (line for line in done.stderr.splitlines() if "error:" in line)
        reason = next(errors, f"mojo ended with exit code {done.returncode}")
        raise InputError(f"the Mojo kernels can't be compiled: {reason}")
    return str(done.stdout)


def _not_writable(folder: str, error: OSError) -> InputError:
    """Error that names the folder that is not writable, or the one that was asked for."""
    reason = f"{error.filename or folder} ({error.strerror})"
    return InputError(f"can't write {reason}: set XDG_CACHE_HOME to a folder of yours")
