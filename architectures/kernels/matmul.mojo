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
comptime STREAMS = 4
"""Rows of the weight that a core reads side by side, each from a part of its own."""
comptime AHEAD = 512
"""Floats between what is multiplied and what is fetched."""


@extensibility.register("graph_pipelines.matmul")
struct MatmulTransposed:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ w [N, K].T in float32.

        Up to four rows wait for memory, not for arithmetic: they read the weight once, at the memory's speed.
        """
        var M = x.dim_size(0)
        var K = x.dim_size(1)
        var N = w.dim_size(0)
        var yp = y.unsafe_ptr()
        var xp = x.unsafe_ptr()
        var wp = w.unsafe_ptr()
        if M == 1:
            few_rows[1](yp, xp, wp, N, K)
        elif M == 2:
            few_rows[2](yp, xp, wp, N, K)
        elif M == 3:
            few_rows[3](yp, xp, wp, N, K)
        elif M == 4:
            few_rows[4](yp, xp, wp, N, K)
        else:
            # The shapes of weights are static in these, which the library's blocking makes use of.
            matmul[transpose_b=True, target=target](
                y.to_tile_tensor[DType.int64](), x.to_tile_tensor[DType.int64](), w.to_tile_tensor[DType.int64](), ctx
            )


def few_rows[
    M: Int
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Float32, _],
    N: Int,
    K: Int,
):
    """Each core takes a contiguous part of the outputs, in STREAMS contiguous parts; what is left over goes singly."""
    var num_tasks = num_physical_cores()
    var rows = ceildiv(N, num_tasks)

    def task(t: Int) {imm}:
        var first = t * rows
        var count = max(0, min(rows, N - first))
        var part = count // STREAMS
        for i in range(part):
            dot[M, STREAMS](y.unsafe_offset(first + i), x, w.unsafe_offset((first + i) * K), part, N, K)
        for n in range(first + part * STREAMS, first + count):
            dot[M, 1](y.unsafe_offset(n), x, w.unsafe_offset(n * K), 0, N, K)

    parallelize(task, num_tasks)


@always_inline
def dot[
    M: Int, S: Int
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Float32, _],
    distance: Int,
    N: Int,
    K: Int,
):
    """The products of M rows of x with S rows of w that are `distance` rows apart."""
    var sums = Array[Vector, M * S](fill=Vector(0))
    var whole = align_down(K, WIDTH)
    for k in range(0, whole, WIDTH):
        comptime for s in range(S):
            var row = w.unsafe_offset(s * distance * K + k)
            prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](row.unsafe_offset(AHEAD))
            var weights = row.unsafe_load[width=WIDTH]()
            comptime for m in range(M):
                var inputs = x.unsafe_offset(m * K + k).unsafe_load[width=WIDTH]()
                sums[m * S + s] = weights.fma(inputs, sums[m * S + s])
    comptime for s in range(S):
        comptime for m in range(M):
            var total = sums[m * S + s].reduce_add()
            for k in range(whole, K):
                var weight = w.unsafe_offset(s * distance * K + k).unsafe_load()
                total += weight * x.unsafe_offset(m * K + k).unsafe_load()
            y.unsafe_offset(m * N + s * distance).unsafe_store(total)
