"""The encoding gguf: each matrix in the type in which its GGUF file stores it; one file holds several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from max.dtype import DType
from max.graph import TensorValue, ops

from pipelines.errors import InputError
from pipelines.loading.blocks import StoredType
from pipelines.loading.encoding import Declare, Encoding, ExpertRows, Matrix, MatrixEncoding, UniformEncoding
from pipelines.loading.encodings import bfloat16, encoding
from pipelines.loading.weight_spec import WeightSource

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config


def stored_encoding(stored: StoredType) -> UniformEncoding:
    """The encoding that keeps a tensor of this type as it is; float16 becomes float32."""
    name = stored.name if stored == DType.bfloat16 or not isinstance(stored, DType) else DType.float32.name
    record = encoding(name)
    assert isinstance(record, UniformEncoding)
    return record


@dataclass(frozen=True)
class Gguf(Encoding):
    """Matrices as the file stores them. Those whose encoding does not have `product_dtype` keep their default."""

    name = "gguf"
    activation_dtypes: ClassVar = {"cpu": DType.float32}
    needs_quantized_checkpoint: ClassVar = True
    has_blocks: ClassVar = True
    product_dtypes: ClassVar = (DType.int8, DType.float32, DType.bfloat16)

    product_dtype: DType = DType.int8

    def with_activations(self, dtype: DType) -> Encoding:
        return replace(self, product_dtype=dtype)

    @property
    def tower(self) -> Encoding:
        return bfloat16.RECORD

    def of_matrix(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> MatrixEncoding:
        """The encoding in which all tensors are stored, or one that joins matrices of several.

        A tensor that is missing counts as float32: `check_weights` names it.
        """
        records = [self._of(stored.get(source.name, DType.float32)) for source in sources]
        encodings = [
            record.of_matrix([source], num_shards, stored, quant_config)
            for record, source in zip(records, sources, strict=True)
        ]
        runs = [(record, sum(1 for _ in run)) for record, run in groupby(encodings)]
        return runs[0][0] if len(runs) == 1 else Joined(tuple(runs))

    def _of(self, stored: StoredType) -> Encoding:
        return stored_encoding(stored).with_activations(self.product_dtype)

    def num_bytes(self, shape: Sequence[int], stored: StoredType) -> int:
        return self._of(stored).num_bytes(shape, stored)


@dataclass(frozen=True)
class Joined(MatrixEncoding):
    """Tensors in several encodings that a graph multiplies as one matrix: queries, keys and values, for example.

    runs: consecutive tensors in the same encoding: (encoding, number of tensors).
    """

    runs: tuple[tuple[MatrixEncoding, int], ...]

    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        parts, first = [], 0
        for i, (record, count) in enumerate(self.runs):
            own = sources[first : first + count]
            parts.append(record.declare(declare, f"{name}.part{i}", own, quant_config))
            first += count
        return [JoinedMatrix(self, (), of_device) for of_device in zip(*parts, strict=True)]

    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        assert isinstance(matrix, JoinedMatrix)
        return ops.concat([part.encoding.matmul(x_TI, part) for part in matrix.parts], axis=1)

    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        raise NotImplementedError("a table of rows is one tensor")

    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        raise InputError(
            "the gate and up projections of the experts are stored in different types: quantize them alike"
        )


@dataclass(frozen=True)
class JoinedMatrix(Matrix):
    """A matrix of parts that are stacked along its outputs. tensors: none of its own."""

    parts: tuple[Matrix, ...]


RECORD = Gguf()
