"""What products of different weights have in common: matrix products are written once, for any `Product`."""

from std.math import ceildiv


trait PreparedRows:
    """How rows of x are stored for products of a few rows: a record for each UNIT of their values."""

    comptime UNIT: Int
    comptime RECORD_BYTES: Int

    @staticmethod
    def row_bytes(K: Int) -> Int:
        """Memory of a row of K weights."""
        ...

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        """Writes the records of K values; the last is filled up with zeros."""
        ...


@always_inline
def prepared_bytes[R: PreparedRows](K: Int) -> Int:
    """Memory of a prepared row."""
    return ceildiv(K, R.UNIT) * R.RECORD_BYTES


trait Product:
    """How activations are multiplied with rows of weights of one format. Sizes without a unit count float32 numbers.

    Rows: how a few rows of x are prepared. GEMV_ROWS: most of them that `gemv` multiplies faster than a GEMM.
    ROWS: rows of weights with which a GEMM's packed rows are multiplied at a time, in tiles of NR: NR or NC.
    TILES_SIZE: memory for these tiles.
    """

    comptime Rows: PreparedRows
    comptime GEMV_ROWS: Int
    comptime ROWS: Int
    comptime TILES_SIZE: Int

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
    def load_tiles(
        tiles: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, row_bytes: Int
    ):
        """Unpacks a piece of up to ROWS rows; the tiles' other rows keep what they have: nobody uses their products."""
        ...

    @staticmethod
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
        """Sums [count, M] = tiles @ the piece at k of M packed rows, added to what the pieces before it gave."""
        ...
