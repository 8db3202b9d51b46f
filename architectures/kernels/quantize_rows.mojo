"""Rows of activations, quantized to signed bytes in groups of 32."""

from std.math import round
from std.memory import bitcast

from .block_columns import GROUP, GroupRows
from .block_formats import BlockFormat, row_bytes
from .columns import COLUMNS, Column, FloatColumn, ScaleColumns, float_at
from .dot_bytes import dot_bytes

comptime CHAINS = 2
"""Least sums that grow side by side: one waits for its last product."""
comptime TINY = Float32(7.888609052210118e-31)
"""2 ** -100: groups of smaller values are zeros, as their reciprocals overflow."""
comptime Quantized = SIMD[DType.int8, GROUP]
comptime Words = SIMD[DType.int32, COLUMNS]


@always_inline
def quantize(x: Pointer[Float32, _], mut values: Quantized) -> Float32:
    """Quantizes 32 values and returns their scale."""
    var wide = x.unsafe_load[width=GROUP]()
    var greatest = bitcast[DType.float32](magnitudes_of[GROUP](wide).reduce_max())
    values = to_bytes(wide, factor_of[1](greatest))
    return scale_of[1](greatest)


@always_inline
def magnitudes_of[size: Int](values: SIMD[DType.float32, size]) -> SIMD[DType.uint32, size]:
    """As integers, so that what is not finite is the greatest."""
    return bitcast[DType.uint32, size](abs(values))


@always_inline
def scale_of[size: Int](greatest: SIMD[DType.float32, size]) -> SIMD[DType.float32, size]:
    """Scales of groups, by their greatest magnitudes; not finite if one is not."""
    return greatest / 127


@always_inline
def factor_of[size: Int](greatest: SIMD[DType.float32, size]) -> SIMD[DType.float32, size]:
    """What the groups' values are multiplied with."""
    return greatest.ge(TINY).select(127 / greatest, 0)


@always_inline
def to_bytes(values: SIMD[DType.float32, GROUP], factor: Float32) -> Quantized:
    return round(values * factor).cast[DType.int8]()


struct QuantizedRows[F: BlockFormat](GroupRows):
    """A record for each group: its bytes, its scale, what sums start from, for formats with minima its sum.

    Sums start from what takes back the weights' offset, for each of the weights' groups.
    """

    comptime Format: BlockFormat = Self.F
    comptime UNIT = GROUP
    comptime PARTS = GROUP // Self.F.GROUP
    comptime SCALE = GROUP
    comptime STARTS = Self.SCALE + 4
    comptime SUM = Self.STARTS + (4 * Self.PARTS if Self.F.OFFSET > 0 else 0)
    comptime RECORD_BYTES = Self.SUM + (4 if Self.F.HAS_MINIMA else 0)

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        for group in range(K // GROUP):
            Self.quantize_group(row.unsafe_offset(group * Self.RECORD_BYTES), x.unsafe_offset(group * GROUP))

    @staticmethod
    @always_inline
    def quantize_group(record: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _]):
        """Writes the record of 32 values."""
        var values = Quantized(0)
        var scale = quantize(x, values)
        record.unsafe_bitcast[Int8]().unsafe_store(values)
        record.unsafe_offset(Self.SCALE).unsafe_bitcast[Float32]().unsafe_store(scale)
        comptime if Self.F.OFFSET > 0:
            comptime for part in range(Self.PARTS):
                var bytes = values.slice[Self.F.GROUP, offset=part * Self.F.GROUP]()
                var start = bytes.cast[DType.int32]().reduce_add() * Int32(-Self.F.OFFSET)
                record.unsafe_offset(Self.STARTS + 4 * part).unsafe_bitcast[Int32]().unsafe_store(start)
        comptime if Self.F.HAS_MINIMA:
            var sum = values.cast[DType.int32]().reduce_add().cast[DType.float32]() * scale
            record.unsafe_offset(Self.SUM).unsafe_bitcast[Float32]().unsafe_store(sum)

    @staticmethod
    @always_inline
    def add_products[
        M: Int, group: Int
    ](
        mut sums: Array[FloatColumn, M],
        x: Pointer[UInt8, _],
        starts: Array[Int, M],
        values: Array[Column, 8],
        scales: ScaleColumns,
    ):
        """Exact sums for each of the weights' groups, scaled by both scales."""
        comptime words = Self.F.GROUP // 4
        comptime chains = max(1, CHAINS // M)
        comptime for part in range(Self.PARTS):
            var products = Array[Words, M * chains](fill=Words(0))
            comptime if Self.F.OFFSET > 0:
                comptime for m in range(M):
                    products[m] = word_at(x, starts[m] + Self.STARTS + part * 4)
            comptime for word in range(part * words, (part + 1) * words):
                var weights = bitcast[DType.uint8, 4 * COLUMNS](values[word])
                comptime for m in range(M):
                    comptime place = word % chains * M + m
                    var bytes = bitcast[DType.int8, 4 * COLUMNS](word_at(x, starts[m] + word * 4))
                    products[place] = dot_bytes[Self.F.LIMIT, COLUMNS](products[place], weights, bytes)
            comptime for place in range(M, M * chains):
                products[place % M] += products[place]
            comptime for m in range(M):
                var scaled = products[m].cast[DType.float32]() * scales.scales[group * Self.PARTS + part]
                sums[m] = scaled.fma(float_at(x, starts[m] + Self.SCALE), sums[m])
        comptime if Self.F.HAS_MINIMA:
            comptime for m in range(M):
                sums[m] = scales.minima[group].fma(-float_at(x, starts[m] + Self.SUM), sums[m])


@always_inline
def word_at(record: Pointer[UInt8, _], offset: Int) -> Words:
    return Words(record.unsafe_offset(offset).unsafe_bitcast[Int32]().unsafe_load())
