"""Products of bfloat16 weights with activations that are rounded to bfloat16, on CPU; sums are in float32."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext

from .dense import Dense
from .experts import multiply_by_experts
from .matmul import multiply
from .words import BFloat16Words

comptime Product = Dense[DType.bfloat16, BFloat16Words]


@extensibility.register("graph_pipelines.bfloat16_matmul")
struct BFloat16Matmul:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.bfloat16, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = bfloat16(x) [M, K] @ w [N, K].T."""
        var weights = w.unsafe_ptr().unsafe_bitcast[UInt8]()
        multiply[Product](y.unsafe_ptr(), x.unsafe_ptr(), weights, x.dim_size(0), w.dim_size(0), x.dim_size(1))


@extensibility.register("graph_pipelines.bfloat16_expert_matmul")
struct BFloat16ExpertMatmul:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.bfloat16, rank=2, ...],
        experts: InputTensor[dtype=DType.int32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Y[r] = bfloat16(x[r // (R / rows of x)]) @ w[experts[r]].T for R rows, of experts stacked in w [E * N, K]."""
        multiply_by_experts[Product](
            y.unsafe_ptr(),
            x.unsafe_ptr(),
            w.unsafe_ptr().unsafe_bitcast[UInt8](),
            experts.unsafe_ptr(),
            y.dim_size(0),
            x.dim_size(0),
            w.dim_size(0),
            y.dim_size(1),
            x.dim_size(1),
        )
