"""Products of activations, quantized to bytes, with blocks of quantized weights."""

from std.math import ceildiv

from .block_columns import GROUP, MR, multiply_columns
from .block_formats import BlockFormat, row_bytes
from .byte_pack import KC, num_words, pack_byte_rows
from .byte_tile import BYTE_TILE_SIZE, load_byte_tiles, multiply_byte_tiles
from .pack import piece_size
from .product import PreparedRows, Product
from .quantize_rows import QuantizedRows
from .tile import NC, NR
from .vectors import WIDTH


struct ByteBlocks[F: BlockFormat](Product):
    """Each row of x is quantized in groups of 32; sums of groups are exact, then scaled in float32."""

    comptime Rows: PreparedRows = QuantizedRows[Self.F]
    comptime GEMV_ROWS = 2 * MR
    comptime ROWS = NC
    comptime TILES_SIZE = NC // NR * BYTE_TILE_SIZE

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
        multiply_columns[QuantizedRows[Self.F]](y, x, w, M, count, N, K)

    @staticmethod
    @always_inline
    def row_size(K: Int) -> Int:
        return K // GROUP * num_words[Self.F]()

    @staticmethod
    @always_inline
    def packed_size(M: Int, K: Int) -> Int:
        return ceildiv(M, WIDTH) * WIDTH * Self.row_size(K)

    @staticmethod
    @always_inline
    def pack_rows(packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
        pack_byte_rows[Self.F](packed, x, vector, M, K)

    @staticmethod
    @always_inline
    def piece_size(K: Int) -> Int:
        return piece_size[Self.F.UNIT, KC](K)

    @staticmethod
    @always_inline
    def load_tiles(
        tiles: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        load_byte_tiles[Self.F](tiles, w, rows, depth, row_bytes)

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
        multiply_byte_tiles[Self.F](sums, packed, tiles, next_weights, M, count, k, K)
