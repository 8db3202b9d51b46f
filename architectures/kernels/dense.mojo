"""Products with weights of plain floating point."""

from std.sys.info import size_of

from .gemv import GEMV_ROWS, gemv
from .pack import pack_rows, packed_size, piece_size
from .product import Product
from .tile import NR, TILE_STRIDE, load_tile, multiply_tile
from .vectors import WIDTH


struct Dense[dtype: DType](Product):
    """Weights [N, K] in float32 or bfloat16."""

    comptime GEMV_ROWS = GEMV_ROWS
    comptime PREPARES = False
    comptime TILE_SIZE = NR * TILE_STRIDE

    @staticmethod
    @always_inline
    def weight_bytes(K: Int) -> Int:
        return K * size_of[Self.dtype]()

    @staticmethod
    @always_inline
    def prepared_size(K: Int) -> Int:
        return 0

    @staticmethod
    def prepare_row(row: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], K: Int):
        pass

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
        gemv(y, x, w.unsafe_bitcast[Scalar[Self.dtype]](), M, count, N, K)

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
        pack_rows[WIDTH](packed, x, vector, M, K)

    @staticmethod
    @always_inline
    def piece_size(K: Int) -> Int:
        return piece_size[WIDTH](K)

    @staticmethod
    @always_inline
    def load_tile(
        tile: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        load_tile(tile, w.unsafe_bitcast[Scalar[Self.dtype]](), rows, depth, row_bytes // size_of[Self.dtype]())

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
        comptime step = WIDTH * size_of[Self.dtype]()
        var depth = min(Self.piece_size(K), K - k)
        multiply_tile(sums, packed, tile, next_weights, Self.weight_bytes(K), step, M, k, depth, K)
