"""Rows of activations in float32 for a GEMV with blocks of quantized weights."""

from std.memory import bitcast

from .block_formats import CHUNK, BlockFormat, Bytes, Floats, floats, row_bytes, spread, unit_bytes
from .gemv import NR, PreparedRows


struct FloatRows[F: BlockFormat](PreparedRows):
    """Rows of x in the order in which weights become float32: first those of each lane's first bytes, and so on.

    A row is a record for each unit: its values, with zeros to the end; for formats with minima the sums of the groups.
    """

    comptime UNIT = Self.F.UNIT
    comptime UNIT_BYTES = unit_bytes[Self.F]()
    comptime MR = 4
    comptime LANES = 16
    comptime SUMS = Self.F.UNIT * 4
    comptime RECORD_BYTES = Self.SUMS + (64 if Self.F.HAS_MINIMA else 0)

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        for start in range(0, K, Self.F.UNIT):
            var record = row.unsafe_offset(start // Self.F.UNIT * Self.RECORD_BYTES).unsafe_bitcast[Float32]()
            Self.prepare_unit(record, x.unsafe_offset(start), min(Self.F.UNIT, K - start) // CHUNK)

    @staticmethod
    @always_inline
    def prepare_unit(record: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], count: Int):
        """Writes the record of `count` chunks."""
        var sums = Floats(0)
        comptime for place in range(Self.F.UNIT // CHUNK):
            comptime chunk = Self.F.chunk(place)
            var values = x.unsafe_offset(chunk * CHUNK).unsafe_load[width=CHUNK]() if chunk < count else Floats(0)
            sums[chunk // 2] += values.reduce_add()
            comptime for byte in range(4):
                var part = SIMD[DType.float32, 4](values[byte], values[byte + 4], values[byte + 8], values[byte + 12])
                record.unsafe_offset((place // 4 * 4 + byte) * 16 + place % 4 * 4).unsafe_store(part)
        comptime if Self.F.HAS_MINIMA:
            record.unsafe_offset(Self.F.UNIT).unsafe_store(sums)

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
        """Scales are applied to sums over a span of vectors."""
        var unit = Self.F.unpack(blocks)
        comptime for span in range(Self.F.UNIT // 64 // Self.F.SPAN):
            var parts = Array[Floats, M](fill=Floats(0))
            comptime for place in range(span * Self.F.SPAN * 4, (span + 1) * Self.F.SPAN * 4):
                var weights = floats_at[Self.F.OFFSET, place % 4](unit.values[place // 4])
                comptime for m in range(M):
                    parts[m] = weights.fma(floats(x, m * stride + place * 64), parts[m])
            var scales = spread[Self.F, span, Self.F.GROUP](unit.scales)
            comptime for m in range(M):
                sums[m * NR + n] = parts[m].fma(scales, sums[m * NR + n])
        comptime if Self.F.HAS_MINIMA:
            comptime for m in range(M):
                sums[m * NR + n] = unit.minima.fma(-floats(x, m * stride + Self.SUMS), sums[m * NR + n])


@always_inline
def floats_at[offset: Int, byte: Int](values: Bytes) -> Floats:
    """This byte of each lane, less the offset: the last bits of 2 ** 23, from which 2 ** 23 is taken again, exactly."""
    var bits = bitcast[DType.uint32, 16](values) >> UInt32(8 * byte) & 255 | 0x4B000000
    return bitcast[DType.float32, 16](bits) - Floats((1 << 23) + offset)
