"""The library of our Mojo kernels, compiled for the graphs that use them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from max.dtype import DType
from max.graph import DeviceRef

from pipelines.native.build import compile_package, run_mojo

SOURCES = Path(__file__).parents[1] / "kernels"
INSTRUCTIONS = {DType.int8: ("bytes", "dot_bytes"), DType.bfloat16: ("bfloat16", "words")}
"""Products by the type of their activations: what they multiply, and the module that knows the instructions."""


def extensions(devices: Sequence[DeviceRef]) -> list[Path]:
    """Custom extensions of a graph on these devices; our kernels are for the CPU."""
    return [kernel_library()] if any(device.is_cpu() for device in devices) else []


@functools.cache
def product_instructions(dtype: DType) -> str:
    """Describes what products with activations in this type are computed with: "products of bytes with avx512-vnni".

    The kernels choose it by the target they are compiled for, so that a program is compiled, in a second or two. There
    is no choice for float32, and no description.

    Raises:
        InputError: The program can't be compiled.
    """
    if dtype not in INSTRUCTIONS:
        return ""
    values, module = INSTRUCTIONS[dtype]
    with TemporaryDirectory() as folder:
        program = Path(folder) / "instructions.mojo"
        program.write_text(f"from kernels.{module} import INSTRUCTIONS\n\n\ndef main():\n    print(INSTRUCTIONS)\n")
        return f"products of {values} with {run_mojo(['run', '-I', str(SOURCES.parent), str(program)]).strip()}"


@functools.cache
def kernel_library() -> Path:
    """Compiles the kernels, once for each version of them and of MAX, in about ten seconds; the result stays on disk.

    Raises:
        InputError: XDG_CACHE_HOME or the temporary folder is not writable, or the kernels can't be compiled.
    """
    return compile_package(SOURCES)
