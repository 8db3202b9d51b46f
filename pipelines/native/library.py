"""Shared libraries of Mojo functions that the host calls on its own arrays, without a graph."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from pipelines.native.build import compile_library

SOURCES = Path(__file__).parent


@functools.cache
def native_library(name: str) -> ctypes.CDLL:
    """Loads the library that `name`.mojo in this folder exports; the first call on a machine compiles it.

    Calls release the GIL. Functions that work on all cores need MAX's threads, which `max.driver` starts.

    Raises:
        InputError: It can't be compiled; as `compile_library`.
    """
    from max.driver import CPU

    CPU()  # starts MAX's threads
    return ctypes.CDLL(str(compile_library(SOURCES / f"{name}.mojo")))
