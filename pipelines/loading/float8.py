"""Block-scaled float8 checkpoints, as DeepSeek V3 and Qwen 3 publish them: a weight and a scale for each block of it.

Source: `quantization_config` as transformers' finegrained_fp8.py reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType

FLOAT8 = DType.float8_e4m3fn
ENCODING = "float8_e4m3fn"
SCALE_SUFFIX = "_scale_inv"
"""Of the name of a weight's scales, after that of the weight."""


@dataclass(frozen=True)
class Float8Config:
    """block: how many rows and columns of a weight share a scale."""

    block: tuple[int, int]

    @classmethod
    def from_huggingface(cls, quantization_config: Mapping[str, Any]) -> Float8Config:
        """From `quantization_config` of config.json.

        Raises:
            ValueError: A method, a format or a way of scaling that is not built, naming it.
        """
        config = dict(quantization_config)
        if (method := config.get("quant_method")) != "fp8":
            raise ValueError(f"quantization_config.quant_method {method!r} is not supported ('fp8' is)")
        for name, supported in (("fmt", "e4m3"), ("activation_scheme", "dynamic")):
            if config.get(name, supported) != supported:
                raise ValueError(f"quantization_config.{name} {config[name]!r} is not supported ({supported!r} is)")
        block = config.get("weight_block_size")
        if not (isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise ValueError(
                f"quantization_config.weight_block_size {block!r} is not supported (rows and columns, [128, 128], are)"
            )
        return cls((block[0], block[1]))

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a weight [rows, columns]; the last blocks may be incomplete."""
        return tuple(-(-size // step) for size, step in zip(shape, self.block, strict=True))


@dataclass(frozen=True)
class ScaledRows:
    """A part of a float8 weight.

    values: its bits, [rows, columns] uint8. scales: of the whole weight's blocks, float32. first: the part's place in
    the whole, row and column.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    first: tuple[int, int]
    block: tuple[int, int]

    def dequantize(self, rows: slice) -> npt.NDArray[np.float32]:
        """These rows of the part, in float32."""
        row, column = self.first
        block_rows = np.arange(row + rows.start, row + min(rows.stop, len(self.values))) // self.block[0]
        block_columns = np.arange(column, column + self.values.shape[1]) // self.block[1]
        return _values()[self.values[rows]] * self.scales[block_rows][:, block_columns]


@cache
def _values() -> npt.NDArray[np.float32]:
    """The numbers that the 256 bytes of float8_e4m3fn stand for."""
    byte = np.arange(256, dtype=np.int64)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(byte & 127) == 127] = np.nan
    return np.where(byte >> 7, -magnitude, magnitude).astype(np.float32)
