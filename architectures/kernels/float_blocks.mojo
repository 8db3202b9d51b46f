"""Products of activations in float32 with blocks of quantized weights, exact for the weights that are stored."""

from std.math import align_up

from .block_formats import CHUNK, BlockFormat, Floats, Unit, row_bytes, unit_bytes
from .block_gemv import MR, NR, PreparedRows, block_gemv, prepared_bytes
from .dequantize import dequantize, weights_at
from .pack import pack_rows, packed_size, piece_size
from .product import Product
from .tile import NR as TILE_ROWS
from .tile import TILE_STRIDE, multiply_tile
from .vectors import WIDTH, copy


struct FloatRows[F: BlockFormat](PreparedRows):
    """Rows of x as they are, with zeros to the end of the last unit."""

    comptime Format = Self.F
    comptime RECORD_BYTES = Self.F.UNIT * 4

    @staticmethod
    @always_inline
    def add_products[
        M: Int, n: Int
    ](mut sums: Array[Floats, MR * NR], x: Pointer[UInt8, _], unit: Unit, stride: Int):
        comptime for place in range(Self.F.UNIT // CHUNK):
            var weights = weights_at[Self.F, place](unit)
            comptime for m in range(M):
                var inputs = x.unsafe_offset(m * stride + Self.F.chunk(place) * CHUNK * 4).unsafe_bitcast[Float32]()
                sums[m * NR + n] = weights.fma(inputs.unsafe_load[width=CHUNK](), sums[m * NR + n])


struct FloatBlocks[F: BlockFormat](Product):
    """Weights are dequantized to float32, a tile at a time."""

    comptime GEMV_ROWS = 8
    comptime PREPARES = True
    comptime TILE_SIZE = TILE_ROWS * TILE_STRIDE

    @staticmethod
    @always_inline
    def weight_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    @always_inline
    def prepared_size(K: Int) -> Int:
        return align_up(K, Self.F.UNIT)

    @staticmethod
    @always_inline
    def prepare_row(row: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], K: Int):
        copy(row, x, K)
        for k in range(K, align_up(K, Self.F.UNIT)):
            row.unsafe_offset(k).unsafe_store(0)

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
