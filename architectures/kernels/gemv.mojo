"""Products of a few rows on CPU, which read each weight once, at the memory's speed."""

from std.math import ceildiv
from std.sys.intrinsics import PrefetchOptions, prefetch

from .rest_units import RestUnits

comptime NR = 4
"""Rows of the weight in the micro-kernel, which are read from as many parts of it in turns."""
comptime MOST_SUMMED = 256
"""Most products that are summed one after the other: sums of sums err less."""
comptime PREFETCH_BYTES = 2048
"""Distance between the weights that are multiplied and those that are prefetched."""


trait PreparedRows:
    """How rows of x are stored for a GEMV: a record for each unit of the weights, the piece that is unpacked at a time.

    UNIT: weights of a unit. MR: most rows of x that are multiplied with a unit. LANES: of the vectors of sums.
    """

    comptime UNIT: Int
    comptime UNIT_BYTES: Int
    comptime RECORD_BYTES: Int
    comptime MR: Int
    comptime LANES: Int

    @staticmethod
    def row_bytes(K: Int) -> Int:
        """Memory of a row of K weights."""
        ...

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        """Writes the records of K values; the last is filled up with zeros."""
        ...

    @staticmethod
    def add_products[
        M: Int, n: Int
    ](
        mut sums: Array[SIMD[DType.float32, Self.LANES], M * NR],
        x: Pointer[UInt8, _],
        unit: Pointer[UInt8, _],
        stride: Int,
    ):
        """Adds the products of M rows' records, `stride` bytes apart, with a unit of row n to sums [M, NR]."""
        ...


@always_inline
def prepared_bytes[R: PreparedRows](K: Int) -> Int:
    """Memory of a prepared row."""
    return ceildiv(K, R.UNIT) * R.RECORD_BYTES


def gemv[
    R: PreparedRows
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The first `count` outputs of N for M prepared rows, on one core: NR rows of the weight at a time.

    The last outputs are computed again with those before them, or NR times, which saves a kernel of their own.
    """
    var stride = R.row_bytes(K)
    var part = count // NR
    for n in range(part):
        multiply_groups[R](y.unsafe_offset(n), x, w.unsafe_offset(n * stride), part, M, N, K)
    if count % NR == 0:
        return
    var distance = 1 if part > 0 else 0
    for n in range(max(0, count - NR), count - (NR - 1) * distance):
        multiply_groups[R](y.unsafe_offset(n), x, w.unsafe_offset(n * stride), distance, M, N, K)


@always_inline
def multiply_groups[
    R: PreparedRows
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    distance: Int,
    M: Int,
    N: Int,
    K: Int,
):
    """M rows in about equal groups of up to MR, of which the first brings the weights into the cache."""
    var groups = ceildiv(M, R.MR)
    for group in range(groups):
        var start = M * group // groups
        var end = M * (group + 1) // groups
        var x_rows = x.unsafe_offset(start * prepared_bytes[R](K))
        var y_rows = y.unsafe_offset(start * N)
        comptime for rows in range(1, R.MR + 1):
            if end - start == rows:
                micro_kernel[R, rows](y_rows, x_rows, w, distance, N, K)


def micro_kernel[
    R: PreparedRows, M: Int
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], distance: Int, N: Int, K: Int):
    """The products of M prepared rows with NR rows of w that are `distance` rows apart, piece by piece of K."""
    comptime piece = R.LANES * MOST_SUMMED // R.UNIT
    var x_stride = prepared_bytes[R](K)
    var stride = distance * R.row_bytes(K)
    var whole = K // R.UNIT
    var rest = RestUnits[R.UNIT_BYTES, NR](w, stride, whole * R.UNIT_BYTES, R.row_bytes(K))
    var totals = Array[SIMD[DType.float32, NR], M](fill=SIMD[DType.float32, NR](0))
    for start in range(0, whole, piece):
        add_piece[R](totals, x, w, x_stride, stride, start, min(start + piece, whole))
    if whole * R.UNIT < K:
        var before = rest.start(0).unsafe_offset(-whole * R.UNIT_BYTES)
        add_piece[R](totals, x, before, x_stride, R.UNIT_BYTES, whole, whole + 1)
    comptime for i in range(M * NR):
        y.unsafe_offset(i // NR * N + i % NR * distance).unsafe_store(totals[i // NR][i % NR])


@always_inline
def add_piece[
    R: PreparedRows, M: Int
](
    mut totals: Array[SIMD[DType.float32, NR], M],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    x_stride: Int,
    stride: Int,
    start: Int,
    end: Int,
):
    """Adds the products of the units from `start` to `end` of K to totals."""
    var sums = Array[SIMD[DType.float32, R.LANES], M * NR](fill=SIMD[DType.float32, R.LANES](0))
    for u in range(start, end):
        comptime for n in range(NR):
            var unit = w.unsafe_offset(n * stride + u * R.UNIT_BYTES)
            comptime for line in range(0, R.UNIT_BYTES, 64):
                # Into L2 only: L1 has the rows of x.
                prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
                    unit.unsafe_offset(PREFETCH_BYTES + line)
                )
            R.add_products[M, n](sums, x.unsafe_offset(u * R.RECORD_BYTES), unit, x_stride)
    comptime for m in range(M):
        var even = add_interleaved(sums[m * NR], sums[m * NR + 2])
        var odd = add_interleaved(sums[m * NR + 1], sums[m * NR + 3])
        totals[m] += add_interleaved(even, odd).reduce_add[NR]()


@always_inline
def add_interleaved[size: Int](a: SIMD[DType.float32, size], b: SIMD[DType.float32, size]) -> SIMD[DType.float32, size]:
    """Sums of pairs of a's values and of b's, by turns."""
    var both = a.interleave(b)
    return both.slice[size, offset=0]() + both.slice[size, offset=size]()
