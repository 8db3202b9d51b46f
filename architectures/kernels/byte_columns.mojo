"""Products of a few quantized rows with 16 rows of weights at a time, whose words stand side by side in vectors.

A product of a word then needs no sum across lanes, and each row's scale is applied once for a group of 16 outputs.
"""

from std.math import ceildiv
from std.memory import bitcast
from std.sys.intrinsics import PrefetchOptions, prefetch

from .block_formats import CHUNK, BlockFormat, Bytes, Floats, row_bytes, unit_bytes
from .dequantize import rest_units
from .dot_bytes import dot_bytes
from .gemv import prepared_bytes
from .quantize_rows import GROUP, QuantizedRows
from .vectors import transpose

comptime COLUMNS = 16
"""Rows of the weight side by side."""
comptime MR = 8
"""Rows of x that are multiplied at a time."""
comptime MAX_ROWS = 2 * MR
"""Most rows: for more of them, tiles of weights are faster."""


struct Columns[F: BlockFormat](Movable):
    """A unit of each of 16 rows: vectors of their words in the unit's order, and of their groups' scales and minima."""

    comptime IS_NIBBLES = Self.F.LIMIT <= 15

    var words: Array[Floats, Self.F.UNIT // 4]
    var scales: Array[Floats, COLUMNS]
    var minima: Array[Floats, COLUMNS]

    @always_inline
    def __init__(out self):
        self.words = Array[Floats, Self.F.UNIT // 4](uninitialized=True)
        self.scales = Array[Floats, COLUMNS](uninitialized=True)
        self.minima = Array[Floats, COLUMNS](uninitialized=True)

    @always_inline
    def load(mut self, blocks: Pointer[UInt8, _], stride: Int, next: Int):
        """Unpacks the rows, which are `stride` bytes apart, and prefetches those that are `next` bytes further on."""
        comptime for row in range(COLUMNS):
            var start = blocks.unsafe_offset(row * stride)
            comptime for line in range(0, unit_bytes[Self.F](), 64):
                prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
                    start.unsafe_offset(next + line)
                )
            var unit = Self.F.unpack(start)
            comptime for v in range(0, Self.F.UNIT // 64, 2 if Self.IS_NIBBLES else 1):
                var bytes = unit.values[v]
                comptime if Self.IS_NIBBLES:
                    bytes |= unit.values[v + 1] << 4
                self.words[v * COLUMNS + row] = bitcast[DType.float32, 16](bytes)
            self.scales[row] = unit.scales
            self.minima[row] = unit.minima
        comptime for v in range(0, Self.F.UNIT // 64, 2 if Self.IS_NIBBLES else 1):
            var square = Array[Floats, COLUMNS](uninitialized=True)
            comptime for row in range(COLUMNS):
                square[row] = self.words[v * COLUMNS + row]
            transpose[COLUMNS](square)
            comptime for word in range(COLUMNS):
                comptime if Self.IS_NIBBLES:
                    var bytes = bitcast[DType.uint8, 64](square[word])
                    self.words[v * COLUMNS + word] = bitcast[DType.float32, 16](bytes & 15)
                    self.words[(v + 1) * COLUMNS + word] = bitcast[DType.float32, 16](bytes >> 4)
                else:
                    self.words[v * COLUMNS + word] = square[word]
        transpose[COLUMNS](self.scales)
        comptime if Self.F.HAS_MINIMA:
            transpose[COLUMNS](self.minima)

    @always_inline
    def add_products(self, mut sums: Array[Floats, MR], x: Pointer[UInt8, _], rows: Array[Int, MR]):
        """Adds the products of the records of rows that begin so many bytes after x."""
        comptime R = QuantizedRows[Self.F]
        comptime for group in range(Self.F.UNIT // Self.F.GROUP):
            var products = Array[SIMD[DType.int32, 16], MR](fill=SIMD[DType.int32, 16](0))
            comptime if Self.F.OFFSET > 0:
                comptime for m in range(MR):
                    products[m] = word_at(x, rows[m] + R.GROUP_STARTS + group * 4)
            comptime for place in range(Self.F.UNIT // CHUNK):
                comptime if Self.F.chunk(place) * CHUNK // Self.F.GROUP == group:
                    comptime for word in range(place * 4, place * 4 + 4):
                        var weights = bitcast[DType.uint8, 64](self.words[word])
                        comptime for m in range(MR):
                            var bytes = bitcast[DType.int8, 64](word_at(x, rows[m] + word * 4))
                            products[m] = dot_bytes[Self.F.LIMIT, 16](products[m], weights, bytes)
            comptime for m in range(MR):
                var x_scales = Floats(float_at(x, rows[m] + R.scale_offset[group * Self.F.GROUP // GROUP]()))
                sums[m] = (products[m].cast[DType.float32]() * self.scales[group]).fma(x_scales, sums[m])
        comptime if Self.F.HAS_MINIMA:
            comptime for group in range(Self.F.UNIT // GROUP):
                comptime for m in range(MR):
                    var x_sums = Floats(-float_at(x, rows[m] + R.SUMS + group * 4))
                    sums[m] = self.minima[group].fma(x_sums, sums[m])


@always_inline
def word_at(record: Pointer[UInt8, _], offset: Int) -> SIMD[DType.int32, 16]:
    return SIMD[DType.int32, 16](record.unsafe_offset(offset).unsafe_bitcast[Int32]().unsafe_load())


@always_inline
def float_at(record: Pointer[UInt8, _], offset: Int) -> Float32:
    return record.unsafe_offset(offset).unsafe_bitcast[Float32]().unsafe_load()


def multiply_columns[
    F: BlockFormat
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The first `count` outputs, at least 16, of N for up to MAX_ROWS prepared rows, on one core.

    The last 16 are computed together, some of them again.
    """
    for n in range(0, count, COLUMNS):
        var first = min(n, count - COLUMNS)
        column_kernel[F](y.unsafe_offset(first), x, w.unsafe_offset(first * row_bytes[F](K)), M, N, K)


def column_kernel[
    F: BlockFormat
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """16 outputs for M prepared rows in groups of MR; the last row stands for those that are not there."""
    comptime size = unit_bytes[F]()
    var stride = row_bytes[F](K)
    var whole = K // F.UNIT
    var rest = rest_units[F, COLUMNS](w, stride, K)
    var columns = Columns[F]()
    var groups = ceildiv(M, MR)
    var sums = Array[Array[Floats, MR], MAX_ROWS // MR](fill=Array[Floats, MR](fill=Floats(0)))
    var rows = Array[Array[Int, MR], MAX_ROWS // MR](fill=Array[Int, MR](fill=0))
    for row in range(groups * MR):
        rows[row // MR][row % MR] = min(row, M - 1) * prepared_bytes[QuantizedRows[F]](K)
    for u in range(ceildiv(K, F.UNIT)):
        if u < whole:
            columns.load(w.unsafe_offset(u * size), stride, COLUMNS * stride)
        else:
            columns.load(rest.start(0), size, 0)
        for group in range(groups):
            columns.add_products(sums[group], x.unsafe_offset(u * QuantizedRows[F].RECORD_BYTES), rows[group])
    for row in range(M):
        y.unsafe_offset(row * N).unsafe_store(sums[row // MR][row % MR])
