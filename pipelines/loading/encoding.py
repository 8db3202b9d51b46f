"""The record of an encoding: how matrices are stored, loaded, multiplied and looked up.

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

from pipelines.loading.weight_spec import WeightSource

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config

Declare = Callable[[str, Sequence[WeightSource], DType], Sequence[TensorValue]]
"""(name, sources, dtype) -> a weight in the graph for each device."""


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] in a graph, as the tensors that its encoding stores."""

    encoding: Encoding
    tensors: tuple[TensorValue, ...]


@dataclass(frozen=True)
class ExpertRows:
    """The expert of each of R rows.

    experts_R: int32. On GPU the rows are sorted by expert: starts, ids and usage are those of `moe_create_indices`,
    None on CPU, where the kernel sorts.
    """

    num_experts: int
    experts_R: TensorValue
    starts: TensorValue | None = None
    ids: TensorValue | None = None
    usage: TensorValue | None = None


class Encoding(ABC):
    """One encoding of matrices. Vectors (norms, biases) are always stored in the type of the activations.

    name: as `quantization_encoding` names it. activation_dtypes: of activations and cache, by the kind of device that
    it runs on. needs_quantized_checkpoint: whether it runs only what the checkpoint stores in it.
    """

    name: ClassVar[str]
    activation_dtypes: ClassVar[Mapping[str, DType]]
    needs_quantized_checkpoint: ClassVar[bool] = False

    def on(self, device_kind: str) -> Encoding:
        """The encoding that matrices have in the memory of such a device: another where it can't multiply this one."""
        return self

    @property
    def fallback(self) -> Encoding | None:
        """The encoding of the matrices that this one can't hold."""
        return None

    def can_hold(
        self,
        sources: Sequence[WeightSource],
        num_shards: int,
        stored: Mapping[str, DType],
        quant_config: Float8Config | None,
    ) -> bool:
        """Whether these tensors, joined and cut, can be in this encoding. stored: types by the tensors' names."""
        return True

    @abstractmethod
    def num_bytes(self, shape: Sequence[int], stored: DType) -> int:
        """The memory of a matrix of this shape that the checkpoint stores in type `stored`."""

    @abstractmethod
    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        """Declares the weights of a matrix in the graph: one matrix for each device."""

    @abstractmethod
    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        """x [T, in] @ matrix [out, in].T -> [T, out], in the type of x."""

    @abstractmethod
    def gather(self, matrix: Matrix, rows_T: TensorValue) -> TensorValue:
        """The rows [T, in] of these numbers, in any float type."""

    @abstractmethod
    def expert_matmul(self, x: TensorValue, matrix: Matrix, rows: ExpertRows) -> TensorValue:
        """Each of R rows times its expert's matrix, of those that are stacked in [E * out, in]: [R, out].

        x: on GPU a row for each of R; on CPU the tokens' rows, each of which may go to several experts.
        """


class DenseEncoding(Encoding):
    """Plain floating point: a matrix is one tensor. On CPU our kernel multiplies it with float32 activations."""

    dtype: ClassVar[DType]

    def num_bytes(self, shape: Sequence[int], stored: DType) -> int:
        return math.prod(shape) * self.dtype.size_in_bytes

    def declare(
        self, declare: Declare, name: str, sources: Sequence[WeightSource], quant_config: Float8Config | None
    ) -> list[Matrix]:
        return [self.matrix(values) for values in declare(name, sources, self.dtype)]

    def matrix(self, values_OI: TensorValue) -> Matrix:
        """A matrix made in the graph from a tensor [out, in] of any float type."""
        return Matrix(self, (values_OI,))

    def matmul(self, x_TI: TensorValue, matrix: Matrix) -> TensorValue:
        (w_OI,) = matrix.tensors
        if not x_TI.device.is_cpu():
            return ops.matmul(x_TI, ops.transpose(w_OI, 0, 1))
        y_TO = TensorType(DType.float32, [x_TI.shape[0], w_OI.shape[0]], x_TI.device)
        return ops.custom("graph_pipelines.matmul", x_TI.device, [x_TI, w_OI], [y_TO])[0].tensor

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
        return ops.custom("graph_pipelines.expert_matmul", x.device, [x, w_OI, rows.experts_R], [y_RO])[0].tensor
