"""What products of different weights have in common: matrix products are written once, for any `Product`."""

from .gemv import PreparedRows


trait Product:
    """How activations are multiplied with rows of weights of one format. Sizes without a unit count float32 numbers.

    Rows: how rows of x are prepared for a GEMV. GEMV_ROWS: most of them that it multiplies faster than a GEMM.
    TILE_SIZE: memory for the tile of NR rows of weights with which a GEMM's packed rows are multiplied.
    """

    comptime Rows: PreparedRows
    comptime GEMV_ROWS: Int
    comptime TILE_SIZE: Int

    @staticmethod
    def gemv(
        y: Pointer[mut=True, Float32, _],
        x: Pointer[UInt8, _],
        w: Pointer[UInt8, _],
        M: Int,
        count: Int,
        N: Int,
        K: Int,
    ):
        """The first `count` outputs of N for M prepared rows, on one core."""
        ...

    @staticmethod
    def row_size(K: Int) -> Int:
        """Memory of a row in packed vectors of rows."""
        ...

    @staticmethod
    def packed_size(M: Int, K: Int) -> Int:
        """Memory of M packed rows."""
        ...

    @staticmethod
    def pack_rows(packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
        """Packs rows vector * WIDTH to (vector + 1) * WIDTH of the M rows of a block, as far as there are."""
        ...

    @staticmethod
    def piece_size(K: Int) -> Int:
        """Weights of a row in each tile but the last."""
        ...

    @staticmethod
    def load_tile(
        tile: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        """Unpacks a piece of up to NR rows; the tile's other rows keep what they have: nobody uses their products."""
        ...

    @staticmethod
    def multiply_tile(
        sums: Pointer[mut=True, Float32, _],
        packed: Pointer[Float32, _],
        tile: Pointer[Float32, _],
        next_weights: Pointer[UInt8, _],
        M: Int,
        k: Int,
        K: Int,
    ):
        """Sums [NR, M] = tile @ the piece at k of M packed rows, added to what the pieces before it gave."""
        ...
