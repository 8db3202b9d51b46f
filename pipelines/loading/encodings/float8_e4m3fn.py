"""Block-scaled float8, as DeepSeek V3 and Qwen 3 publish it: a weight, and a scale for each block of it.

On GPU matrices are multiplied as they are: the rows of x are quantized in each step, with a scale for each block's
width of columns. On CPU matrices are dequantized to bfloat16 while they are loaded.
Source: `quantization_config` as transformers' finegrained_fp8.py reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import DeviceRef, TensorValue
from max.nn.kernels import (
    dynamic_scaled_matmul,
    grouped_dynamic_scaled_fp8_matmul,
    quantize_dynamic_scaled_float8,
)
from max.nn.quant_config import InputScaleSpec, ScaleGranularity, ScaleOrigin, WeightScaleSpec

from pipelines.loading.blocks import StoredType
from pipelines.loading.encoding import Declare, Encoding, ExpertRows, Matrix, UniformEncoding
from pipelines.loading.encodings import bfloat16
from pipelines.loading.weight_spec import WeightSource

FLOAT8 = DType.float8_e4m3fn
SCALE_SUFFIX = "_scale_inv"
"""Suffix of the name of a weight's scales, after the name of the weight."""


@dataclass(frozen=True)
class Float8Config:
    """The scaling of a checkpoint's float8 weights. block: rows and columns of a weight that share a scale."""

    block: tuple[int, int]

    @classmethod
    def from_huggingface(cls, quantization_config: Mapping[str, Any]) -> Float8Config:
        """Reads `quantization_config` of config.json.

        Raises:
            ValueError: A method, format or scaling is not supported; the message names it.
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
        """Shape of the scales of a weight [rows, columns]; the last blocks may be incomplete."""
        return tuple(-(-size // step) for size, step in zip(shape, self.block, strict=True))

    def scales_of(self, source: WeightSource) -> WeightSource:
        """Source of the scales of a tensor, cut as the tensor is."""
        shape = self.scale_shape(source.shape)
        units = source.units if source.axis is None else min(source.units, shape[source.axis])
        return WeightSource(source.name + SCALE_SUFFIX, shape, source.axis, units)

    def is_dequantized(self, source: StoredType, target: DType) -> bool:
        """Whether a tensor stored in `source` has scales that are multiplied in to make a weight of type `target`."""
        return source == FLOAT8 != target

    def cuts_no_block(self, sources: Sequence[WeightSource], num_shards: int) -> bool:
        """Whether no block is cut where sources are joined, nor where devices share them."""
        joins = [source.shape[0] % self.block[0] for source in sources[:-1]]
        cuts = [s.shard_size(num_shards) % self.block[s.axis] for s in sources if s.axis is not None]
        return not any(joins + (cuts if num_shards > 1 else []))


@dataclass(frozen=True)
class ScaledRows:
    """A part of a float8 weight with its scales.

    values: its bits, [rows, columns] uint8. scales: those of the whole weight's blocks, float32. first: the row and
    column at which the part begins in the whole.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    first: tuple[int, int]
    block: tuple[int, int]

    def dequantize(self, rows: slice) -> npt.NDArray[np.float32]:
        """Dequantizes these rows of the part, to float32."""
        row, column = self.first
        block_rows = np.arange(row + rows.start, row + min(rows.stop, len(self.values))) // self.block[0]
        block_columns = np.arange(column, column + self.values.shape[1]) // self.block[1]
        return _values()[self.values[rows]] * self.scales[block_rows][:, block_columns]


class Float8(UniformEncoding):
    """float8_e4m3fn with a float32 scale for each block; the scales' shape follows from that of the matrix."""

    name = "float8_e4m3fn"
    activation_dtypes: ClassVar = {"cpu": DType.float32, "gpu": DType.bfloat16}
    needs_quantized_checkpoint = True

    def on(self, device_kind: str) -> Encoding:
        return self if device_kind == "gpu" else bfloat16.RECORD

    @property
    def fallback(self) -> Encoding:
        return bfloat16.RECORD

    def can_hold(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> bool:
        """Whether the checkpoint stores all of them in float8, and no block is cut."""
        is_stored = all(stored.get(source.name) == FLOAT8 for source in sources)
        return is_stored and quant_config is not None and quant_config.cuts_no_block(sources, num_shards)

    def num_bytes(self, shape: Sequence[int], stored: StoredType) -> int:
        """Memory of a matrix: one byte per element if it is stored in float8; its scales are tensors of their own."""
        return math.prod(shape) if stored == FLOAT8 else self.fallback.num_bytes(shape, stored)

    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        assert quant_config is not None
        values = declare(name, sources, FLOAT8)
        scales = declare(name + SCALE_SUFFIX, [quant_config.scales_of(source) for source in sources], DType.float32)
        return [Float8Matrix(self, (v, s), quant_config.block) for v, s in zip(values, scales, strict=True)]

    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        values, weight_scales = matrix.tensors
        specs = _scale_specs(matrix)
        quantized, scales = _quantize(x_TI, matrix)
        return dynamic_scaled_matmul(quantized, values, scales, weight_scales, *specs, out_type=x_TI.dtype)

    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        raise NotImplementedError("no published model has embeddings in float8")

    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        assert rows.starts is not None and rows.ids is not None and rows.usage is not None
        quantized, scales = _quantize(x, matrix)
        values, weight_scales = (t.reshape((rows.num_experts, -1, t.shape[1])) for t in matrix.tensors)
        return grouped_dynamic_scaled_fp8_matmul(
            quantized,
            values,
            scales,
            weight_scales,
            rows.starts,
            rows.ids,
            rows.usage.to(DeviceRef.CPU()),
            *_scale_specs(matrix),
            out_type=x.dtype,
        )


@dataclass(frozen=True)
class Float8Matrix(Matrix):
    """A matrix in float8. tensors: values [out, in] float8, and scales, float32, one for each block."""

    block: tuple[int, int]


RECORD = Float8()


def _quantize(x: TensorValue, matrix: Matrix) -> tuple[TensorValue, TensorValue]:
    rows, weights = _scale_specs(matrix)
    return quantize_dynamic_scaled_float8(
        x, rows, weights, group_size_or_per_token=_block(matrix)[1], out_type=FLOAT8, scales_type=DType.float32
    )


def _scale_specs(matrix: Matrix) -> tuple[InputScaleSpec, WeightScaleSpec]:
    """Granularity of the scales: of x by row and a block's width of columns, of the weight by block."""
    block = _block(matrix)
    rows = InputScaleSpec(ScaleGranularity.BLOCK, ScaleOrigin.DYNAMIC, DType.float32, block_size=(1, block[1]))
    return rows, WeightScaleSpec(ScaleGranularity.BLOCK, DType.float32, block)


def _block(matrix: Matrix) -> tuple[int, int]:
    assert isinstance(matrix, Float8Matrix)
    return matrix.block


@cache
def _values() -> npt.NDArray[np.float32]:
    """Values of the 256 bytes of float8_e4m3fn."""
    byte = np.arange(256, dtype=np.int64)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(byte & 127) == 127] = np.nan
    return np.where(byte >> 7, -magnitude, magnitude).astype(np.float32)
