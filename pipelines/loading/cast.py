"""Exact and rounding casts between the float types of checkpoints, with numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType

Array = npt.NDArray[Any]


def can_cast(source: DType, target: DType) -> bool:
    """Whether `cast_into` supports this pair: equal types, widening, and rounding to bfloat16."""
    return source == target or (source, target) in CASTS


def cast_into(target: Array, target_dtype: DType, source: Array, source_dtype: DType) -> None:
    """Writes `source` into `target`, of the same shape and C-contiguous. bfloat16 is held in uint16."""
    if source_dtype == target_dtype:
        np.copyto(target, source)
    else:
        CASTS[source_dtype, target_dtype](target, source)


def _widen_bfloat16(target: Array, source: Array) -> None:
    np.left_shift(source, 16, out=target.view(np.uint32), dtype=np.uint32)


def _round_to_bfloat16(target: Array, source: Array) -> None:
    """Rounds to nearest, ties to even; a NaN stays one even if its payload is in the lower half."""
    bits = np.ascontiguousarray(source, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    np.copyto(target, np.where(np.isnan(source), (bits >> np.uint32(16)) | np.uint32(0x40), rounded), casting="unsafe")


CASTS: dict[tuple[DType, DType], Callable[[Array, Array], None]] = {
    (DType.bfloat16, DType.float32): _widen_bfloat16,
    (DType.float16, DType.float32): np.copyto,
    (DType.float32, DType.bfloat16): _round_to_bfloat16,
    (DType.float16, DType.bfloat16): _round_to_bfloat16,
}
