"""Block formats: the quantized weights of GGUF files. Each row of a matrix is cut into blocks with scales of their own.

Source: ggml's block structures, as the gguf package's quants.py reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData


@dataclass(frozen=True)
class BlockFormat:
    """A block format. num_weights: weights of a block. num_bytes: bytes of a block."""

    name: str
    num_weights: int
    num_bytes: int

    def can_hold(self, num_columns: int) -> bool:
        """Whether rows of so many weights are whole blocks."""
        return num_columns % self.num_weights == 0

    def row_bytes(self, num_columns: int) -> int:
        """Bytes of a row of so many weights."""
        assert self.can_hold(num_columns), (self.name, num_columns)
        return num_columns // self.num_weights * self.num_bytes

    def num_columns(self, row_bytes: int) -> int:
        """Weights of a row of so many bytes."""
        return row_bytes // self.num_bytes * self.num_weights

    @property
    def ggml_type(self) -> gguf.GGMLQuantizationType:
        """The type's number in GGUF files."""
        return gguf.GGMLQuantizationType[self.name.upper()]

    def dequantize(self, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Computes the weights [rows, columns] of blocks [rows, bytes]."""
        return gguf.quants.dequantize(blocks, self.ggml_type)


FORMATS = {
    block_format.name: block_format
    for block_format in (
        BlockFormat(name, *gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]])
        for name in ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
    )
}
"""The formats that the kernels multiply, by name."""


@dataclass
class BlockData(WeightData):  # type: ignore[misc]
    """A checkpoint's tensor in blocks. data: uint8 [..., row bytes], a view of the file. shape: of its weights."""

    block_format: BlockFormat = field(kw_only=True)


StoredType: TypeAlias = "DType | BlockFormat"
"""A type in which checkpoints store tensors."""


def stored_type(data: WeightData) -> StoredType:
    """Type in which a tensor is stored."""
    return data.block_format if isinstance(data, BlockData) else data.dtype
