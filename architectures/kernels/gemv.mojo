"""Products of a few rows with weights of plain floating point, which are read once, at the memory's speed."""

from std.math import ceildiv
from std.sys.info import size_of
from std.sys.intrinsics import PrefetchOptions, prefetch

from .product import PreparedRows, prepared_bytes
from .rest_units import RestUnits
from .vectors import HAS_32_REGISTERS, LINE_BYTES, WIDTH, Vector, load
from .words import Words, copy_words, load_words

comptime NR = 4
"""Rows of the weight in the micro-kernel, which are read from as many parts of it in turns."""
comptime MR = 6 if HAS_32_REGISTERS else 2
"""Most rows of x in the micro-kernel."""
comptime MOST_SUMMED = 256
"""Most products that are summed one after the other: sums of sums err less."""
comptime PREFETCH_BYTES = 2048
"""Distance between the weights that are multiplied and those that are prefetched."""


struct DenseRows[dtype: DType, W: Words](PreparedRows):
    """Rows of words, a vector in each record, for weights of a type that become words as they are read."""

    comptime UNIT = WIDTH * Self.W.VALUES
    comptime UNIT_BYTES = Self.UNIT * size_of[Self.dtype]()
    comptime RECORD_BYTES = WIDTH * 4

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return K * size_of[Self.dtype]()

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        copy_words[Self.W](row.unsafe_bitcast[Float32](), x, K)


def gemv[
    dtype: DType, W: Words
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
    var stride = DenseRows[dtype, W].row_bytes(K)
    var part = count // NR
    for n in range(part):
        multiply_groups[dtype, W](y.unsafe_offset(n), x, w.unsafe_offset(n * stride), part, M, N, K)
    if count % NR == 0:
        return
    var distance = 1 if part > 0 else 0
    for n in range(max(0, count - NR), count - (NR - 1) * distance):
        multiply_groups[dtype, W](y.unsafe_offset(n), x, w.unsafe_offset(n * stride), distance, M, N, K)


@always_inline
def multiply_groups[
    dtype: DType, W: Words
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
        var x_rows = x.unsafe_offset(start * prepared_bytes[DenseRows[dtype, W]](K))
        var y_rows = y.unsafe_offset(start * N)
        comptime for rows in range(1, MR + 1):
            if end - start == rows:
                micro_kernel[dtype, W, rows](y_rows, x_rows, w, distance, N, K)


def micro_kernel[
    dtype: DType, W: Words, M: Int
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], distance: Int, N: Int, K: Int):
    """The products of M prepared rows with NR rows of w that are `distance` rows apart, piece by piece of K."""
    comptime R = DenseRows[dtype, W]
    comptime piece = MOST_SUMMED // W.VALUES
    var x_stride = prepared_bytes[R](K)
    var stride = distance * R.row_bytes(K)
    var whole = K // R.UNIT
    var rest = RestUnits[R.UNIT_BYTES, NR](w, stride, whole * R.UNIT_BYTES, R.row_bytes(K))
    var totals = Array[SIMD[DType.float32, NR], M](fill=SIMD[DType.float32, NR](0))
    for start in range(0, whole, piece):
        add_piece[dtype, W](totals, x, w, x_stride, stride, start, min(start + piece, whole))
    if whole * R.UNIT < K:
        var before = rest.start(0).unsafe_offset(-whole * R.UNIT_BYTES)
        add_piece[dtype, W](totals, x, before, x_stride, R.UNIT_BYTES, whole, whole + 1)
    comptime for i in range(M * NR):
        y.unsafe_offset(i // NR * N + i % NR * distance).unsafe_store(totals[i // NR][i % NR])


@always_inline
def add_piece[
    dtype: DType, W: Words, M: Int
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
    comptime R = DenseRows[dtype, W]
    var sums = Array[Vector, M * NR](fill=Vector(0))
    for u in range(start, end):
        comptime for n in range(NR):
            var unit = w.unsafe_offset(n * stride + u * R.UNIT_BYTES)
            comptime for line in range(0, R.UNIT_BYTES, LINE_BYTES):
                # Into L2 only: L1 has the rows of x.
                prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
                    unit.unsafe_offset(PREFETCH_BYTES + line)
                )
            var weights = load_words[W](unit.unsafe_bitcast[Scalar[dtype]]())
            comptime for m in range(M):
                var values = load(x.unsafe_offset(m * x_stride + u * R.RECORD_BYTES).unsafe_bitcast[Float32](), 0)
                sums[m * NR + n] = W.multiply_add(sums[m * NR + n], weights, values)
    comptime for m in range(M):
        var even = add_interleaved(sums[m * NR], sums[m * NR + 2])
        var odd = add_interleaved(sums[m * NR + 1], sums[m * NR + 3])
        totals[m] += add_interleaved(even, odd).reduce_add[NR]()


@always_inline
def add_interleaved(a: Vector, b: Vector) -> Vector:
    """Sums of pairs of a's values and of b's, by turns."""
    var both = a.interleave(b)
    return both.slice[WIDTH, offset=0]() + both.slice[WIDTH, offset=WIDTH]()
