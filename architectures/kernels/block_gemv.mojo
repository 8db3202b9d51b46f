"""Products of a few rows with blocks of weights on CPU, which read each weight once, at the memory's speed."""

from std.math import ceildiv
from std.sys.intrinsics import PrefetchOptions, prefetch

from .block_formats import BlockFormat, Floats, Unit, row_bytes, unit_bytes
from .dequantize import RestUnits

comptime NR = 4
"""Rows of the weight in the micro-kernel, which are read from as many parts of it in turns."""
comptime MR = 4
"""Most rows of x in it."""
comptime MOST_SUMS = MR * NR
comptime PREFETCH_BYTES = 2048
"""Distance between the weights that are multiplied and those that are prefetched."""


trait PreparedRows:
    """How rows of x are stored for a GEMV: a record for each unit of the weights."""

    comptime Format: BlockFormat
    comptime RECORD_BYTES: Int

    @staticmethod
    def add_products[
        M: Int, n: Int, NR: Int
    ](mut sums: Array[Floats, MOST_SUMS], x: Pointer[UInt8, _], unit: Unit, stride: Int):
        """Adds the products of M rows' records, `stride` bytes apart, with a unit of row n to sums [M, NR]."""
        ...


@always_inline
def prepared_bytes[R: PreparedRows](K: Int) -> Int:
    """Memory of a prepared row."""
    return ceildiv(K, R.Format.UNIT) * R.RECORD_BYTES


def block_gemv[
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
    var stride = row_bytes[R.Format](K)
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
    var groups = ceildiv(M, MR)
    for group in range(groups):
        var start = M * group // groups
        var end = M * (group + 1) // groups
        var x_rows = x.unsafe_offset(start * prepared_bytes[R](K))
        var y_rows = y.unsafe_offset(start * N)
        comptime for rows in range(1, MR + 1):
            if end - start == rows:
                micro_kernel[R, rows](y_rows, x_rows, w, distance, N, K)


def micro_kernel[
    R: PreparedRows, M: Int
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], distance: Int, N: Int, K: Int):
    """The products of M prepared rows with NR rows of w that are `distance` rows apart."""
    comptime size = unit_bytes[R.Format]()
    var sums = Array[Floats, MOST_SUMS](fill=Floats(0))
    var x_stride = prepared_bytes[R](K)
    var stride = distance * row_bytes[R.Format](K)
    var whole = K // R.Format.UNIT
    var rest = RestUnits[R.Format, NR](w, stride, K)
    for u in range(ceildiv(K, R.Format.UNIT)):
        comptime for n in range(NR):
            var blocks = w.unsafe_offset(n * stride + u * size) if u < whole else rest.start(n)
            comptime for line in range(0, size, 64):
                # Into L2 only: L1 has the rows of x.
                prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
                    blocks.unsafe_offset(PREFETCH_BYTES + line)
                )
            R.add_products[M, n, NR](sums, x.unsafe_offset(u * R.RECORD_BYTES), R.Format.unpack(blocks), x_stride)
    comptime for m in range(M):
        comptime for n in range(NR):
            y.unsafe_offset(m * N + n * distance).unsafe_store(sums[m * NR + n].reduce_add())
