"""Products with weights of plain floating point."""

from std.math import ceildiv
from std.sys.info import size_of

from .gemv import DenseRows, gemv
from .pack import MAX_REST, pack_rows, packed_size, piece_size
from .product import PreparedRows, Product
from .tile import NR, TILE_STRIDE, load_tile, multiply_tile
from .vectors import WIDTH
from .words import Floats, Words


struct Dense[dtype: DType, W: Words = Floats](Product):
    """Weights [N, K] in float32 or bfloat16; rows of activations become words."""

    comptime Rows: PreparedRows = DenseRows[Self.dtype, Self.W]
    comptime GEMV_ROWS = 2 * WIDTH if Self.W.VALUES == 1 else MAX_REST
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
        gemv[Self.dtype, Self.W](y, x, w, M, count, N, K)

    @staticmethod
    @always_inline
    def row_size(K: Int) -> Int:
        return ceildiv(K, Self.W.VALUES)

    @staticmethod
    @always_inline
    def packed_size(M: Int, K: Int) -> Int:
        return packed_size(M, Self.row_size(K))

    @staticmethod
    @always_inline
    def pack_rows(packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
        pack_rows[WIDTH, Self.W](packed, x, vector, M, K)

    @staticmethod
    @always_inline
    def piece_size(K: Int) -> Int:
        return piece_size[WIDTH](Self.row_size(K)) * Self.W.VALUES

    @staticmethod
    @always_inline
    def load_tiles(
        tiles: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        var stride = row_bytes // size_of[Self.dtype]()
        load_tile[Self.W](tiles, w.unsafe_bitcast[Scalar[Self.dtype]](), rows, depth, stride)

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
        comptime step = WIDTH * Self.W.VALUES * size_of[Self.dtype]()
        var depth = Self.row_size(min(Self.piece_size(K), K - k))
        var first = k // Self.W.VALUES
        multiply_tile[Self.W](
            sums, packed, tiles, next_weights, Self.Rows.row_bytes(K), step, M, first, depth, Self.row_size(K)
        )
