"""Matrix products on CPU. M rows of activations, N outputs, K inputs."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys.info import num_physical_cores

from .gemm import gemm
from .gemv import GEMV_ROWS, gemv


@extensibility.register("graph_pipelines.matmul")
struct MatmulTransposed:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ w [N, K].T; float32 or bfloat16 weights, float32 for all else."""
        multiply(y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), x.dim_size(0), w.dim_size(0), x.dim_size(1))


def multiply[
    dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    M: Int,
    N: Int,
    K: Int,
):
    """For a few rows, each core computes a contiguous part of the outputs."""
    if M > GEMV_ROWS:
        gemm(y, x, w, M, N, K)
        return
    var num_tasks = num_physical_cores()
    var share = ceildiv(N, num_tasks)

    def task(t: Int) {imm}:
        var first = t * share
        gemv(y.unsafe_offset(first), x, w.unsafe_offset(first * K), M, max(0, min(share, N - first)), N, K)

    parallelize(task, num_tasks)
