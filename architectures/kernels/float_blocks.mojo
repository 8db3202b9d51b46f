"""Products of activations in float32 with blocks of quantized weights, exact for the weights that are stored."""

from std.memory import bitcast

from .block_formats import CHUNK, BlockFormat, Bytes, Floats, Unit, floats, row_bytes, spread, unit_bytes
from .block_gemv import MOST_SUMS, PreparedRows, block_gemv, prepared_bytes
from .dequantize import dequantize
from .pack import pack_rows, packed_size, piece_size
from .product import Product
from .tile import NR, TILE_STRIDE, multiply_tile
from .vectors import WIDTH


struct FloatRows[F: BlockFormat](PreparedRows):
    """Rows of x in the order in which weights become float32: first those of each lane's first bytes, and so on.

    A row is a record for each unit: its values, with zeros to the end; for formats with minima the sums of the groups.
    """

    comptime Format = Self.F
    comptime SUMS = Self.F.UNIT * 4
    comptime RECORD_BYTES = Self.SUMS + (64 if Self.F.HAS_MINIMA else 0)

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
        M: Int, n: Int, NR: Int
    ](mut sums: Array[Floats, MOST_SUMS], x: Pointer[UInt8, _], unit: Unit, stride: Int):
        """Scales are applied to sums over a span of vectors."""
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


struct FloatBlocks[F: BlockFormat](Product):
    """Weights are dequantized to float32, a tile at a time."""

    comptime GEMV_ROWS = 8
    comptime PREPARES = True
    comptime TILE_SIZE = NR * TILE_STRIDE

    @staticmethod
    @always_inline
    def weight_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    @always_inline
    def prepared_size(K: Int) -> Int:
        return prepared_bytes[FloatRows[Self.F]](K) // 4

    @staticmethod
    @always_inline
    def prepare_row(row: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], K: Int):
        FloatRows[Self.F].prepare_row(row.unsafe_bitcast[UInt8](), x, K)

    @staticmethod
    @always_inline
    def gemv(
        y: Pointer[mut=True, Float32, _],
        x: Pointer[Float32, _],
        w: Pointer[UInt8, _],
        M: Int,
        count: Int,
        N: Int,
        K: Int,
    ):
        block_gemv[FloatRows[Self.F]](y, x.unsafe_bitcast[UInt8](), w, M, count, N, K)

    @staticmethod
    @always_inline
    def row_size(K: Int) -> Int:
        return K

    @staticmethod
    @always_inline
    def packed_size(M: Int, K: Int) -> Int:
        return packed_size(M, K)

    @staticmethod
    @always_inline
    def pack_rows(packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
        pack_rows[Self.F.UNIT](packed, x, vector, M, K)

    @staticmethod
    @always_inline
    def piece_size(K: Int) -> Int:
        return piece_size[Self.F.UNIT](K)

    @staticmethod
    @always_inline
    def load_tile(
        tile: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        for r in range(rows):
            dequantize[Self.F](tile.unsafe_offset(r * TILE_STRIDE), w.unsafe_offset(r * row_bytes), depth)

    @staticmethod
    @always_inline
    def multiply_tile(
        sums: Pointer[mut=True, Float32, _],
        packed: Pointer[Float32, _],
        tile: Pointer[Float32, _],
        next_weights: Pointer[UInt8, _],
        M: Int,
        k: Int,
        K: Int,
    ):
        comptime step = unit_bytes[Self.F]() * WIDTH // Self.F.UNIT
        var depth = min(Self.piece_size(K), K - k)
        multiply_tile(sums, packed, tile, next_weights, row_bytes[Self.F](K), step, M, k, depth, K)
