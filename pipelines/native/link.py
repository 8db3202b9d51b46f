"""Shared libraries on machines without a C compiler, as containers are: MAX brings a linker of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

C_COMPILERS = ("cc", "gcc", "clang")
RUNTIME = ("libKGENCompilerRTShared.so", "libAsyncRTMojoBindings.so")
RUN_MOJO = "import sys; from mojo.run import subprocess_run_mojo as run; sys.exit(run(sys.argv[1:]).returncode)"


def has_c_compiler() -> bool:
    """Whether `mojo build` finds a C compiler, which it links with."""
    return any(map(shutil.which, C_COMPILERS))


def build_without_c_compiler(command: Sequence[str]) -> CompletedProcess[str]:
    """Does what `mojo build --emit shared-lib SOURCE -o LIBRARY` does, with MAX's linker.

    Mojo asks for a C compiler even where nothing is linked: an empty program stands for it.
    """
    source, library = command[command.index("shared-lib") + 1], command[-1]
    with TemporaryDirectory() as temporary:
        compiled = Path(temporary) / "library.o"
        (Path(temporary) / C_COMPILERS[0]).touch(0o755)
        environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{temporary}"}
        build = [sys.executable, "-c", RUN_MOJO, "build", "--emit", "object", source, "-o", str(compiled)]
        done = subprocess.run(build, capture_output=True, text=True, errors="replace", env=environment)
        if done.returncode != 0:
            return done
        link = [*_linker(), "-shared", "--gc-sections", str(compiled), *_runtime(), "-o", library]
        return subprocess.run(link, capture_output=True, text=True, errors="replace", env=environment)


def _linker() -> list[str]:
    return [str(_root() / "bin" / "lld"), "-flavor", "gnu"]


def _runtime() -> list[str]:
    folder = _root() / "lib"
    return [*(str(folder / name) for name in RUNTIME), "-rpath", str(folder)]


def _root() -> Path:
    """Folder of MAX's programs and libraries."""
    spec = importlib.util.find_spec("modular")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the folder of max's programs is missing")
    return Path(next(iter(spec.submodule_search_locations)))
