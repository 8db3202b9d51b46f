"""The record of an encoding: the storage, loading, multiplication and lookup of its matrices.

Shape suffixes: T rows, I inputs, O outputs, R rows that were dispatched to experts, E experts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops
from max.nn.kernels import grouped_matmul_ragged

from pipelines.loading.blocks import StoredType
from pipelines.loading.weight_spec import WeightSource

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config

Declare = Callable[[str, Sequence[WeightSource], StoredType], Sequence[TensorValue]]
"""Declares a weight in the graph for each device: (name, sources, type or block format) -> their values."""


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] in a graph: the tensors in which its encoding stores it."""

    encoding: MatrixEncoding
    tensors: tuple[TensorValue, ...]


@dataclass(frozen=True)
class ExpertRows:
    """The assignment of R rows to experts.

    experts_R: the expert of each row, int32. starts, ids, usage: on GPU, where the rows are sorted by expert, as
    `moe_create_indices` returns them; None on CPU, where the kernel sorts.
    """

    num_experts: int
    experts_R: TensorValue
    starts: TensorValue | None = None
    ids: TensorValue | None = None
    usage: TensorValue | None = None


class MatrixEncoding(ABC):
    """The way in which a graph stores, multiplies and looks up a matrix."""

    @abstractmethod
    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        """Declares the weights of a matrix in the graph: one matrix for each device."""

    @abstractmethod
    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        """Computes x [T, in] @ matrix [out, in].T -> [T, out], in the type of x."""

    @abstractmethod
    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        """Looks up the rows [T, in] of these numbers, in any float type."""

    @abstractmethod
    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        """Multiplies each of R rows by its expert's matrix: [R, out].

        Args:
            x: On GPU the R rows; on CPU the rows of the tokens, each of which may go to several experts.
            matrix: The experts' matrices, stacked in [E * out, in].
            rows: The expert of each row.
        """


class Encoding(ABC):
    """An encoding of a model's matrices. Vectors (norms, biases) are always stored in the type of the activations.

    name: its value of `quantization_encoding`. activation_dtypes: types of activations and cache, by the device kinds
    that run it. needs_quantized_checkpoint: whether the checkpoint must be stored in it. has_blocks: whether it stores
    weights in blocks. product_dtypes: types to which its products on CPU can round activations, the default first.
    product_dtype: that to which they do.
    """

    name: str
    activation_dtypes: ClassVar[Mapping[str, DType]]
    needs_quantized_checkpoint: ClassVar[bool] = False
    has_blocks: ClassVar[bool] = False
    product_dtypes: ClassVar[Sequence[DType]] = (DType.float32,)
    product_dtype: DType = DType.float32

    @abstractmethod
    def of_matrix(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> MatrixEncoding:
        """Returns the encoding of a matrix of these tensors, joined and cut.

        Args:
            sources: The tensors.
            num_shards: Devices that share them.
            stored: Types in the checkpoint by tensor name.
            quant_config: Scaling of the checkpoint's float8 tensors.
        """

    @abstractmethod
    def num_bytes(self, shape: Sequence[int], stored: StoredType) -> int:
        """Memory of a matrix of this shape that the checkpoint stores in type `stored`."""

    def on(self, device_kind: str) -> Encoding:
        """Encoding of the matrices in the memory of this device kind: another one if it can't multiply this one."""
        return self

    def with_activations(self, dtype: DType) -> Encoding:
        """This encoding, with activations rounded to a type in its products; unchanged if it does not have the type."""
        return self

    @property
    def head(self) -> Encoding:
        """Encoding of the embedding and the head, unless the run asks for another."""
        return self

    @property
    def tower(self) -> Encoding:
        """Encoding of the matrices of towers for other modalities."""
        return self


class UniformEncoding(Encoding, MatrixEncoding):
    """An encoding of all matrices that it can hold; others are in its fallback."""

    @property
    def fallback(self) -> Encoding | None:
        """Encoding of the matrices that this one can't hold; None if it holds all."""
        return None

    def can_hold(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> bool:
        """Whether a matrix of these tensors can be in this encoding. Args: those of `of_matrix`."""
        return True

    def of_matrix(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, StoredType],
        quant_config: Float8Config | None,
    ) -> MatrixEncoding:
        if self.can_hold(sources, num_shards, stored, quant_config):
            return self
        assert self.fallback is not None
        return self.fallback.of_matrix(sources, num_shards, stored, quant_config)


class DenseEncoding(UniformEncoding):
    """Plain floating point: a matrix is one tensor, which our kernels multiply on CPU."""

    dtype: ClassVar[DType]

    @property
    def kernels(self) -> str:
        """Prefix of the names of its kernels."""
        return "graph_pipelines."

    def num_bytes(self, shape: Sequence[int], stored: StoredType) -> int:
        return math.prod(shape) * self.dtype.size_in_bytes

    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        return [self.matrix(values) for values in declare(name, sources, self.dtype)]

    def matrix(self, values_OI: TensorValue) -> Matrix:
        """Wraps a tensor [out, in] of the graph, of any float type, as a matrix."""
        return Matrix(self, (values_OI,))

    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        (w_OI,) = matrix.tensors
        if not x_TI.device.is_cpu():
            return ops.matmul(x_TI, ops.transpose(w_OI, 0, 1))
        y_TO = TensorType(DType.float32, [x_TI.shape[0], w_OI.shape[0]], x_TI.device)
        return ops.custom(self.kernels + "matmul", x_TI.device, [x_TI, w_OI], [y_TO])[0].tensor

    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        (w_OI,) = matrix.tensors
        return ops.gather(w_OI, rows_T, axis=0)

    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        (w_OI,) = matrix.tensors
        out = int(w_OI.shape[0]) // rows.num_experts
        if rows.starts is not None and rows.ids is not None and rows.usage is not None:
            w_EOI = w_OI.reshape((rows.num_experts, out, w_OI.shape[1]))
            return grouped_matmul_ragged(x, w_EOI, rows.starts, rows.ids, rows.usage)
        y_RO = TensorType(DType.float32, [rows.experts_R.shape[0], out], x.device)
        return ops.custom(self.kernels + "expert_matmul", x.device, [x, w_OI, rows.experts_R], [y_RO])[0].tensor
