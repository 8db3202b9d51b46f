"""Products of a few rows on CPU, which read each weight once, at the memory's speed."""

from std.math import ceildiv
from std.sys.intrinsics import PrefetchOptions, prefetch

from .pack import KC
from .vectors import HAS_32_REGISTERS, WIDTH, Vector, load

comptime GEMV_ROWS = 2 * WIDTH
"""Most rows: for more of them, transposed rows and tiles of weights are faster."""
comptime NR = 4
"""Rows of the weight in the micro-kernel, each from another part of it: so many streams that are read in order."""
comptime MR = 6 if HAS_32_REGISTERS else 2
"""Most rows of x in it: as many as leave registers for what is multiplied."""
comptime PREFETCH_BYTES = 2048
"""Distance between the weights that are multiplied and those that are prefetched."""


def gemv[
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
    """The first `count` outputs of N for M rows, on one core."""
    var part = count // NR
    for i in range(part):
        multiply_groups[NR](y.unsafe_offset(i), x, w.unsafe_offset(i * K), part, M, N, K)
    for n in range(part * NR, count):
        multiply_groups[1](y.unsafe_offset(n), x, w.unsafe_offset(n * K), 1, M, N, K)


@always_inline
def multiply_groups[
    S: Int, dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    distance: Int,
    M: Int,
    N: Int,
    K: Int,
):
    """M rows in about equal groups, of which the first brings the weights into L1."""
    var groups = ceildiv(M, MR)
    var start = 0
    for group in range(groups):
        var end = M * (group + 1) // groups
        var x_rows = x.unsafe_offset(start * K)
        var y_rows = y.unsafe_offset(start * N)
        comptime for rows in range(1, MR + 1):
            if end - start == rows:
                if group == 0:
                    micro_kernel[rows, S, True](y_rows, x_rows, w, distance, N, K)
                else:
                    micro_kernel[rows, S, False](y_rows, x_rows, w, distance, N, K)
        start = end


@always_inline
def micro_kernel[
    M: Int, S: Int, prefetches: Bool, dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    distance: Int,
    N: Int,
    K: Int,
):
    """The products of M rows of x with S rows of w that are `distance` rows apart, piece by piece of K."""
    var totals = Array[SIMD[DType.float32, S], M](fill=SIMD[DType.float32, S](0))
    for start in range(0, K, KC * WIDTH):
        var sums = Array[Vector, M * S](fill=Vector(0))
        add_products[M, S, prefetches](sums, x, w, distance, start, min(start + KC * WIDTH, K), K)
        comptime for m in range(M):
            var row = Array[Vector, S](fill=Vector(0))
            comptime for s in range(S):
                row[s] = sums[m * S + s]
            totals[m] += total(row)
    comptime for i in range(M * S):
        y.unsafe_offset(i // S * N + i % S * distance).unsafe_store(totals[i // S][i % S])


@always_inline
def add_products[
    M: Int, S: Int, prefetches: Bool, dtype: DType
](
    mut sums: Array[Vector, M * S],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    distance: Int,
    start: Int,
    end: Int,
    K: Int,
):
    """Adds the products of `start` to `end` of K to sums [M, S]: vectors, then what is left in their first places."""
    comptime ahead = PREFETCH_BYTES // 4 if dtype == DType.float32 else PREFETCH_BYTES // 2
    var whole = end - (end - start) % WIDTH
    for k in range(start, whole, WIDTH):
        comptime for s in range(S):
            var row = w.unsafe_offset(s * distance * K + k)
            comptime if prefetches:
                # Into L2 only: L1 has the rows of x.
                prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](row.unsafe_offset(ahead))
            var weights = row.unsafe_load[width=WIDTH]().cast[DType.float32]()
            comptime for m in range(M):
                sums[m * S + s] = weights.fma(load(x, m * K + k), sums[m * S + s])
    for k in range(whole, end):
        comptime for i in range(M * S):
            var weight = w.unsafe_offset(i % S * distance * K + k).unsafe_load().cast[DType.float32]()
            sums[i][0] = weight.fma(x.unsafe_offset(i // S * K + k).unsafe_load(), sums[i][0])


@always_inline
def total[S: Int](sums: Array[Vector, S]) -> SIMD[DType.float32, S]:
    """The total of each of 1 or NR vectors."""
    comptime if S == NR:
        var even = add_interleaved(sums[0], sums[2])
        var odd = add_interleaved(sums[1], sums[3])
        return add_interleaved(even, odd).reduce_add[S]()
    else:
        return SIMD[DType.float32, S](sums[0].reduce_add())


@always_inline
def add_interleaved(a: Vector, b: Vector) -> Vector:
    """Sums of pairs of a's values and of b's, by turns."""
    var both = a.interleave(b)
    return both.slice[WIDTH, offset=0]() + both.slice[WIDTH, offset=WIDTH]()
