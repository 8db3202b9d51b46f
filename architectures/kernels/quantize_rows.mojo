"""Rows of activations, quantized to signed bytes in groups of 32, in the order of a GEMV's vectors of weights.

A row is a record for each unit of the weights: its bytes; for each span of vectors what their lanes start from, which
takes back the weights' offset, and the lanes' scales; for formats with minima the sums of the groups, 16 floats.
"""

from std.math import round
from std.memory import bitcast

from .block_formats import CHUNK, BlockFormat, Bytes, Floats, floats, row_bytes, spread, unit_bytes
from .dot_bytes import dot_bytes
from .gemv import NR, PreparedRows

comptime GROUP = 32
"""Activations that share a scale."""
comptime TINY = Float32(7.888609052210118e-31)
"""2 ** -100: groups of smaller values are zeros, as their reciprocals overflow."""
comptime Quantized = SIMD[DType.int8, GROUP]


@always_inline
def quantize(x: Pointer[Float32, _], mut values: Quantized) -> Float32:
    """Quantizes 32 values and returns their scale: the greatest magnitude / 127, not finite if one is not."""
    var wide = x.unsafe_load[width=GROUP]()
    # As integers, so that what is not finite is the greatest.
    var greatest = bitcast[DType.float32](bitcast[DType.uint32, GROUP](abs(wide)).reduce_max())
    var factor = 127 / greatest if greatest >= TINY else 0
    values = round(wide * factor).cast[DType.int8]()
    return greatest / 127


struct QuantizedRows[F: BlockFormat](PreparedRows):
    """The records of quantized rows, and their products."""

    comptime UNIT = Self.F.UNIT
    comptime UNIT_BYTES = unit_bytes[Self.F]()
    comptime MR = 4
    comptime LANES = 16
    comptime SPANS = Self.F.UNIT // 64 // Self.F.SPAN
    comptime STARTS = Self.F.UNIT
    comptime SCALES = Self.STARTS + (Self.SPANS * 64 if Self.F.OFFSET > 0 else 0)
    comptime SUMS = Self.SCALES + Self.SPANS * 64
    comptime GROUP_STARTS = Self.SUMS + (64 if Self.F.HAS_MINIMA else 0)
    comptime RECORD_BYTES = Self.GROUP_STARTS + (64 if Self.F.OFFSET > 0 else 0)

    @staticmethod
    @always_inline
    def scale_offset[group: Int]() -> Int:
        """Where the record has the scale of a group of 32."""
        comptime for place in range(Self.F.UNIT // CHUNK):
            comptime if Self.F.chunk(place) * CHUNK == group * GROUP:
                return Self.SCALES + place // 4 // Self.F.SPAN * 64 + place % 4 * 16
        return 0

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        """Quantizes K values; the last record is filled up with zeros."""
        for start in range(0, K, Self.F.UNIT):
            var record = row.unsafe_offset(start // Self.F.UNIT * Self.RECORD_BYTES)
            Self.quantize_unit(record, x.unsafe_offset(start), min(Self.F.UNIT, K - start) // GROUP)

    @staticmethod
    @always_inline
    def quantize_unit(record: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], count: Int):
        """Writes the record of `count` groups."""
        var values = Array[SIMD[DType.int8, CHUNK], Self.F.UNIT // CHUNK](fill=SIMD[DType.int8, CHUNK](0))
        var scales = Floats(0)
        var sums = Floats(0)
        comptime for group in range(Self.F.UNIT // GROUP):
            if group < count:
                var bytes = Quantized(0)
                scales[group] = quantize(x.unsafe_offset(group * GROUP), bytes)
                values[2 * group] = bytes.slice[CHUNK, offset=0]()
                values[2 * group + 1] = bytes.slice[CHUNK, offset=CHUNK]()
                sums[group] = bytes.cast[DType.int32]().reduce_add().cast[DType.float32]() * scales[group]
        comptime for place in range(Self.F.UNIT // CHUNK):
            record.unsafe_offset(place * CHUNK).unsafe_bitcast[Int8]().unsafe_store(values[Self.F.chunk(place)])
        comptime for span in range(Self.SPANS):
            var lanes = spread[Self.F, span, GROUP](scales)
            record.unsafe_offset(Self.SCALES + span * 64).unsafe_bitcast[Float32]().unsafe_store(lanes)
            comptime if Self.F.OFFSET > 0:
                var starts = SIMD[DType.int32, 16](0)
                comptime for v in range(span * Self.F.SPAN, (span + 1) * Self.F.SPAN):
                    starts = dot_bytes[Self.F.OFFSET, 16](starts, Bytes(Self.F.OFFSET), signed(record, v * 64))
                record.unsafe_offset(Self.STARTS + span * 64).unsafe_bitcast[Int32]().unsafe_store(-starts)
        comptime if Self.F.OFFSET > 0:
            var starts = SIMD[DType.int32, 16](0)
            comptime for place in range(Self.F.UNIT // CHUNK):
                comptime group = Self.F.chunk(place) * CHUNK // Self.F.GROUP
                starts[group] -= Int32(Self.F.OFFSET) * values[Self.F.chunk(place)].cast[DType.int32]().reduce_add()
            record.unsafe_offset(Self.GROUP_STARTS).unsafe_bitcast[Int32]().unsafe_store(starts)
        comptime if Self.F.HAS_MINIMA:
            record.unsafe_offset(Self.SUMS).unsafe_bitcast[Float32]().unsafe_store(sums)

    @staticmethod
    @always_inline
    def add_products[
        M: Int, n: Int
    ](
        mut sums: Array[SIMD[DType.float32, Self.LANES], M * NR],
        x: Pointer[UInt8, _],
        blocks: Pointer[UInt8, _],
        stride: Int,
    ):
        """Exact sums for each lane of a span of vectors, scaled by both scales."""
        var unit = Self.F.unpack(blocks)
        comptime for span in range(Self.SPANS):
            var scales = spread[Self.F, span, Self.F.GROUP](unit.scales)
            comptime for m in range(M):
                var record = x.unsafe_offset(m * stride)
                var products = SIMD[DType.int32, 16](0)
                comptime if Self.F.OFFSET > 0:
                    products = bitcast[DType.int32, 16](floats(record, Self.STARTS + span * 64))
                comptime for v in range(span * Self.F.SPAN, (span + 1) * Self.F.SPAN):
                    products = dot_bytes[Self.F.LIMIT, 16](products, unit.values[v], signed(record, v * 64))
                var x_scales = floats(record, Self.SCALES + span * 64)
                sums[m * NR + n] = (products.cast[DType.float32]() * scales).fma(x_scales, sums[m * NR + n])
        comptime if Self.F.HAS_MINIMA:
            comptime for m in range(M):
                sums[m * NR + n] = unit.minima.fma(-floats(x, m * stride + Self.SUMS), sums[m * NR + n])


@always_inline
def signed(record: Pointer[UInt8, _], offset: Int) -> SIMD[DType.int8, 64]:
    return record.unsafe_offset(offset).unsafe_bitcast[Int8]().unsafe_load[width=64]()
