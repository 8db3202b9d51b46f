"""Matrix products on CPU. M rows of activations, N outputs, K inputs."""

import extensibility
from extensibility import InputTensor, OutputTensor
from linalg.matmul import matmul
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_down, ceildiv
from std.sys.info import num_physical_cores, simd_width_of
from std.sys.intrinsics import PrefetchOptions, prefetch

comptime WIDTH = simd_width_of[DType.float32]()
comptime Vector = SIMD[DType.float32, WIDTH]
comptime NR = 4
"""Rows of the weight in the micro-kernel: as many as leave registers for MR rows of x."""
comptime MR = 6
"""Rows of x in the micro-kernel, multiplied with the same weights while these are in registers."""
comptime GEMV_ROWS = 4
"""Up to so many rows of x the product waits for the weight to come from memory, for more on the arithmetic."""
comptime LIBRARY_ROWS = 16
"""For more rows than these, the library's blocked product of float32 is faster than ours."""
comptime L2_BYTES = 1 << 19
"""Part of x that is kept in L2 while all weights of a core pass."""
comptime PREFETCH_BYTES = 2048
"""Distance between the weights that are multiplied and those that are prefetched."""


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
        var M = x.dim_size(0)

        comptime if dtype == DType.float32:
            if M > LIBRARY_ROWS:
                # The shapes of weights are static in these, which the library's blocking makes use of.
                matmul[transpose_b=True, target=target](
                    y.to_tile_tensor[DType.int64](),
                    x.to_tile_tensor[DType.int64](),
                    w.to_tile_tensor[DType.int64](),
                    ctx,
                )
                return
        multiply(y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), M, w.dim_size(0), x.dim_size(1))


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
    """Each core computes a contiguous part of the outputs."""
    var num_tasks = num_physical_cores()
    var share = ceildiv(N, num_tasks)

    def task(t: Int) {imm}:
        var first = t * share
        var count = max(0, min(share, N - first))
        multiply_part(y.unsafe_offset(first), x, w.unsafe_offset(first * K), M, count, N, K)

    parallelize(task, num_tasks)


def multiply_part[
    dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The first `count` outputs of N, on one core."""
    if M <= GEMV_ROWS:
        comptime for m in range(1, GEMV_ROWS + 1):
            if M == m:
                gemv[m](y, x, w, count, N, K)
    else:
        gemm(y, x, w, M, count, N, K)


def gemv[
    M: Int, dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    count: Int,
    N: Int,
    K: Int,
):
    """Reads `count` rows of the weight once, at the memory's speed: in NR contiguous parts, then the rest."""
    var part = count // NR
    for i in range(part):
        micro_kernel[M, NR](y.unsafe_offset(i), x, w.unsafe_offset(i * K), part, N, K)
    for n in range(part * NR, count):
        micro_kernel[M, 1](y.unsafe_offset(n), x, w.unsafe_offset(n * K), 0, N, K)


def gemm[
    dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """Block by block of x that fits in L2; the weights' rows stay in L1 while the block passes."""
    var block = max(MR, L2_BYTES // (4 * K) // MR * MR)
    for top in range(0, M, block):
        var bottom = min(top + block, M)
        for n in range(0, count - count % NR, NR):
            micro_panel[NR](y.unsafe_offset(n), x, w.unsafe_offset(n * K), top, bottom, N, K)
        for n in range(count - count % NR, count):
            micro_panel[1](y.unsafe_offset(n), x, w.unsafe_offset(n * K), top, bottom, N, K)


@always_inline
def micro_panel[
    S: Int, dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    top: Int,
    bottom: Int,
    N: Int,
    K: Int,
):
    """Rows top to bottom of x with S adjacent rows of w."""
    var whole = bottom - (bottom - top) % MR
    for m in range(top, whole, MR):
        micro_kernel[MR, S](y.unsafe_offset(m * N), x.unsafe_offset(m * K), w, 1, N, K)
    comptime for rest in range(1, MR):
        if bottom - whole == rest:
            micro_kernel[rest, S](y.unsafe_offset(whole * N), x.unsafe_offset(whole * K), w, 1, N, K)


@always_inline
def micro_kernel[
    M: Int, S: Int, dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    distance: Int,
    N: Int,
    K: Int,
):
    """The products of M rows of x with S rows of w that are `distance` rows apart."""
    comptime ahead = PREFETCH_BYTES // 4 if dtype == DType.float32 else PREFETCH_BYTES // 2
    var sums = Array[Vector, M * S](fill=Vector(0))
    var whole = align_down(K, WIDTH)
    for k in range(0, whole, WIDTH):
        comptime for s in range(S):
            var row = w.unsafe_offset(s * distance * K + k)
            comptime if M <= GEMV_ROWS:
                prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](row.unsafe_offset(ahead))
            var weights = row.unsafe_load[width=WIDTH]().cast[DType.float32]()
            comptime for m in range(M):
                var inputs = x.unsafe_offset(m * K + k).unsafe_load[width=WIDTH]()
                sums[m * S + s] = weights.fma(inputs, sums[m * S + s])
    comptime for s in range(S):
        comptime for m in range(M):
            var total = sums[m * S + s].reduce_add()
            for k in range(whole, K):
                var weight = w.unsafe_offset(s * distance * K + k).unsafe_load().cast[DType.float32]()
                total += weight * x.unsafe_offset(m * K + k).unsafe_load()
            y.unsafe_offset(m * N + s * distance).unsafe_store(total)
