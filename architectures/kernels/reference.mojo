"""The matrix product in plain loops, which tests compare the fast one with."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.gpu.host import DeviceContext


@extensibility.register("graph_pipelines.reference_matmul")
struct ReferenceMatmul:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ w [N, K].T, summed in float64 and rounded once."""
        var K = x.dim_size(1)
        var xp = x.unsafe_ptr()
        var wp = w.unsafe_ptr()
        var yp = y.unsafe_ptr()
        for m in range(y.dim_size(0)):
            for n in range(y.dim_size(1)):
                var total = Float64(0)
                for k in range(K):
                    var weight = wp.unsafe_offset(n * K + k).unsafe_load().cast[DType.float64]()
                    total += weight * xp.unsafe_offset(m * K + k).unsafe_load().cast[DType.float64]()
                yp.unsafe_offset(m * y.dim_size(1) + n).unsafe_store(total.cast[DType.float32]())
