"""Quantization of weights to the block formats of GGUF files, on all cores."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType

from pipelines.errors import InputError
from pipelines.loading.blocks import FORMATS, BlockFormat
from pipelines.native.library import native_library

Array = npt.NDArray[Any]

SOURCE_DTYPES = (DType.float32, DType.bfloat16)
"""Types of weights that can be quantized. numpy has no bfloat16: its bits are held in uint16."""
PROBLEMS = {
    1: "has values that aren't finite numbers, which {} can't hold: the checkpoint is damaged",
    2: "has values that are too large for the scales of {}: choose another encoding",
}


def quantize(values: Array, dtype: DType, block_format: BlockFormat, name: str = "") -> npt.NDArray[np.uint8]:
    """Quantizes rows of weights [..., columns] to blocks [..., row bytes]; as `quantize_into`."""
    blocks = np.empty((*values.shape[:-1], block_format.row_bytes(values.shape[-1])), np.uint8)
    quantize_into(blocks, values, dtype, block_format, name)
    return blocks


def quantize_into(
    target: npt.NDArray[np.uint8], values: Array, dtype: DType, block_format: BlockFormat, name: str = ""
) -> None:
    """Quantizes rows of weights into `target`. Uses all cores and releases the GIL.

    Blocks of 32 are those of the gguf package, bit for bit but for blocks that are all the same number because their
    scale is under 2 ** -120. Those of 256 search their scales as llama.cpp does, and choose among a few more of them.

    Args:
        target: Blocks [..., row bytes], C-contiguous.
        values: Weights [..., columns], C-contiguous; rows are whole blocks.
        dtype: One of SOURCE_DTYPES.
        block_format: One of FORMATS.
        name: Name of the tensor, for messages.

    Raises:
        InputError: A value is infinite, NaN or too large, or the Mojo code can't be compiled.
    """
    assert dtype in SOURCE_DTYPES and FORMATS.get(block_format.name) == block_format, (name, dtype, block_format)
    assert values.itemsize == dtype.size_in_bytes and target.dtype == np.uint8, (name, values.dtype, target.dtype)
    assert values.flags.c_contiguous and target.flags.c_contiguous, name
    assert target.shape == (*values.shape[:-1], block_format.row_bytes(values.shape[-1])), (name, target.shape)
    if values.size == 0:
        return
    problem = native_library("quantize").quantize(
        ctypes.c_void_p(target.ctypes.data),
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_int64(values.size),
        ctypes.c_int64(int(block_format.ggml_type)),
        ctypes.c_int64(dtype == DType.bfloat16),
    )
    if problem:
        tensor = f"tensor '{name}'" if name else "a tensor"
        raise InputError(f"{tensor} {PROBLEMS[problem].format(block_format.name)}")
