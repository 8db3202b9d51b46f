"""Products of activations in float32 with blocks of quantized weights, exact for the weights that are stored."""

from .block_columns import MR, multiply_columns
from .block_formats import BlockFormat, row_bytes, unit_bytes
from .dequantize import dequantize
from .float_rows import FloatRows
from .pack import pack_rows, packed_size, piece_size
from .product import PreparedRows, Product
from .tile import NR, TILE_STRIDE, multiply_tile
from .vectors import HAS_32_REGISTERS, WIDTH


struct FloatBlocks[F: BlockFormat](Product):
    """Weights are dequantized to float32, a tile at a time."""

    comptime Rows: PreparedRows = FloatRows[Self.F]
    comptime GEMV_ROWS = MR if HAS_32_REGISTERS else MR // 2
    comptime ROWS = NR
    comptime TILES_SIZE = NR * TILE_STRIDE

    @staticmethod
    @always_inline
    def gemv(
        y: Pointer[mut=True, Float32, _],
        x: Pointer[UInt8, _],
        w: Pointer[UInt8, _],
        M: Int,
        count: Int,
        N: Int,
        K: Int,
    ):
        multiply_columns[FloatRows[Self.F]](y, x, w, M, count, N, K)

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
    def load_tiles(
        tiles: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        for r in range(rows):
            dequantize[Self.F](tiles.unsafe_offset(r * TILE_STRIDE), w.unsafe_offset(r * row_bytes), depth)

    @staticmethod
    @always_inline
    def multiply_tiles(
        sums: Pointer[mut=True, Float32, _],
        packed: Pointer[Float32, _],
        tiles: Pointer[Float32, _],
        next_weights: Pointer[UInt8, _],
        M: Int,
        count: Int,
        k: Int,
        K: Int,
    ):
        comptime step = unit_bytes[Self.F]() * WIDTH // Self.F.UNIT
        var depth = min(Self.piece_size(K), K - k)
        multiply_tile(sums, packed, tiles, next_weights, row_bytes[Self.F](K), step, M, k, depth, K)
