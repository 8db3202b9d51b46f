"""The library of our Mojo kernels, compiled for the graphs that use them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from max.graph import DeviceRef

from pipelines.native.build import compile_package, run_mojo

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
        return run_mojo(["run", "-I", str(SOURCES.parent), str(program)]).strip()


@functools.cache
def kernel_library() -> Path:
    """Compiles the kernels, once for each version of them and of MAX, in about ten seconds; the result stays on disk.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable, or the kernels can't be compiled.
    """
    return compile_package(SOURCES)
