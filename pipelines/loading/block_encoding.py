"""Encodings of matrices in blocks of quantized weights. Shape suffixes: as in encoding.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from pipelines.loading.blocks import FORMATS, BlockFormat, StoredType
from pipelines.loading.encoding import Declare, Encoding, ExpertRows, Matrix, UniformEncoding
from pipelines.loading.encodings import bfloat16, encoding
from pipelines.loading.weight_spec import WeightSource

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config


@dataclass(frozen=True)
class BlockMatrix(Matrix):
    """A matrix in blocks. tensors: its rows of blocks, [out, bytes] uint8. num_columns: weights of a row."""

    num_columns: int


@dataclass(frozen=True)
class BlockEncoding(UniformEncoding):
    """Matrices in a block format, as GGUF files store them, multiplied by our kernels on CPU.

    fallback_name: the encoding of matrices whose rows are not whole blocks. product_dtype: int8, and products quantize
    each row of activations by groups of 32, as llama.cpp and OpenVINO do by default; or float32, and weights are
    dequantized, and products are exact for them but for float32's roundings.
    """

    activation_dtypes: ClassVar = {"cpu": DType.float32}
    has_blocks: ClassVar = True
    product_dtypes: ClassVar = (DType.int8, DType.float32)

    name: str
    fallback_name: str = bfloat16.RECORD.name
    head_name: str = "q8_0"
    product_dtype: DType = DType.int8

    @property
    def block_format(self) -> BlockFormat:
        """Format of the blocks, which has the name of the encoding."""
        return FORMATS[self.name]

    def with_activations(self, dtype: DType) -> Encoding:
        return replace(self, product_dtype=dtype) if dtype in self.product_dtypes else self

    @property
    def fallback(self) -> Encoding:
        return self._same_activations(self.fallback_name)

    @property
    def head(self) -> Encoding:
        """8 bits, as in the files of others: the head decides between tokens, and all of them are looked up."""
        return self._same_activations(self.head_name)

    @property
    def tower(self) -> Encoding:
        return bfloat16.RECORD

    def _same_activations(self, name: str) -> Encoding:
        return encoding(name).with_activations(self.product_dtype)

    def can_hold(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> bool:
        """Whether the rows of all of them, cut to a shard, are whole blocks."""
        return all(self.block_format.can_hold(source.shard_shape(num_shards)[-1]) for source in sources)

    def num_bytes(self, shape: Sequence[int], stored: StoredType) -> int:
        if not self.block_format.can_hold(shape[-1] if shape else 1):
            return self.fallback.num_bytes(shape, stored)
        return math.prod(shape[:-1]) * self.block_format.row_bytes(shape[-1])

    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        blocks = declare(name, sources, self.block_format)
        return [BlockMatrix(self, (rows,), self.block_format.num_columns(int(rows.shape[1]))) for rows in blocks]

    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        (rows,) = matrix.tensors
        y_TO = TensorType(DType.float32, [x_TI.shape[0], rows.shape[0]], x_TI.device)
        return ops.custom("graph_pipelines.block_matmul", x_TI.device, [x_TI, rows], [y_TO], self._product)[0].tensor

    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        (rows,) = matrix.tensors
        assert isinstance(matrix, BlockMatrix)
        y_TI = TensorType(DType.float32, [rows_T.shape[0], matrix.num_columns], rows.device)
        values = [rows, ops.cast(rows_T, DType.int64)]
        return ops.custom("graph_pipelines.block_gather", rows.device, values, [y_TI], {"format": self.name})[0].tensor

    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        (blocks,) = matrix.tensors
        y_RO = TensorType(DType.float32, [rows.experts_R.shape[0], int(blocks.shape[0]) // rows.num_experts], x.device)
        values = [x, blocks, rows.experts_R]
        return ops.custom("graph_pipelines.block_expert_matmul", x.device, values, [y_RO], self._product)[0].tensor

    @property
    def _product(self) -> dict[str, str | bool]:
        """Parameters of the kernels of products."""
        return {"format": self.name, "int8_activations": self.product_dtype == DType.int8}
