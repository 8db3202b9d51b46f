"""Shared libraries of Mojo functions that the host calls on its own arrays, without a graph."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from pipelines.native.build import compile_library, keep_library

SOURCES = Path(__file__).parent
LIBRARIES = ("sampling", "quantize")
"""The libraries of this folder: of requests, and of weights."""


@functools.cache
def native_library(name: str) -> ctypes.CDLL:
    """Loads the library that `name`.mojo in this folder exports; the first call on a machine compiles it.

    Calls release the GIL. Functions that work on all cores need MAX's threads, which `max.driver` starts.

    Raises:
        InputError: It can't be compiled; as `compile_library`.
    """
    from max.driver import CPU

    CPU()  # starts MAX's threads
    return ctypes.CDLL(str(library_file(name)))


def library_file(name: str) -> Path:
    """Returns the file of a library, which is compiled first if this machine has none.

    Raises:
        InputError: As `native_library`.
    """
    return compile_library(SOURCES / f"{name}.mojo")


def install_library(name: str, compiled: Path) -> None:
    """Puts a library where `native_library` looks for it, if it is not there; it was compiled on a machine like this.

    Raises:
        InputError: XDG_CACHE_HOME is not writable.
    """
    keep_library(SOURCES / f"{name}.mojo", compiled)
