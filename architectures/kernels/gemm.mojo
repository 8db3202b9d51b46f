"""Products of many rows on CPU: blocks of packed rows in L2 with tiles of weights."""

from max.algorithm import parallelize
from std.atomic import Atomic
from std.math import align_up, ceildiv
from std.sys.info import num_physical_cores

from .product import Product
from .tile import NC, NR
from .vectors import LINE_BYTES, WIDTH, Vector, load, store, transpose, uninitialized, zeros

comptime MC = 256
"""Most rows of x in a block: a piece of them, up to KC values of each, takes a quarter of an L2 of 1 MiB."""
comptime SLAB = 4 * MC
"""Most rows that are packed at a time."""
comptime SERIAL = 1 << 17
"""Up to so many values of x are packed sooner on one core than another core wakes up."""
comptime L2_BYTES = 1 << 19
"""Part of L2 for packed rows; results that take more than it are not kept in caches."""
comptime PARTS = 4
"""Fewer parts than these for each core would let some cores wait for others at the end."""


struct Scratch:
    """A core's memory for a product: tiles of weights, and the sums [count, M] of a block."""

    var tiles: List[Vector]
    var sums: List[Vector]

    def __init__(out self, tiles_size: Int, M: Int, count: Int):
        self.tiles = zeros(tiles_size)
        self.sums = uninitialized(count * align_up(M, WIDTH))


def gemm[
    P: Product
](y: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """Y [M, N] = x [M, K] @ w [N, K].T on all cores."""
    var memory = uninitialized(P.packed_size(min(M, SLAB), K))
    var packed = memory.unsafe_ptr().unsafe_bitcast[Float32]()
    for m in range(0, M, SLAB):
        gemm_slab[P](y.unsafe_offset(m * N), x.unsafe_offset(m * K), w, packed, min(SLAB, M - m), N, K)


def gemm_slab[
    P: Product
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[UInt8, _],
    packed: Pointer[mut=True, Float32, _],
    M: Int,
    N: Int,
    K: Int,
):
    """All cores pack the rows; then each takes the next part of the outputs until none is left."""
    var rows = block_rows(M)
    var blocks = ceildiv(M, rows)
    var width = part_width(N, blocks, are_in_l2[P](rows, K))
    var parts = ceildiv(N, width) * blocks

    def pack(vector: Int) {imm}:
        pack_vector[P](packed, x, vector, M, K)

    if M * K > SERIAL:
        parallelize(pack, ceildiv(M, WIDTH))
    else:
        for vector in range(ceildiv(M, WIDTH)):
            pack(vector)
    var next_part = Int64(0)
    var counter = Pointer(to=next_part)

    def work(_core: Int) {imm}:
        var scratch = Scratch(P.TILES_SIZE, rows, width)
        var part = Int(Atomic[Int64].fetch_add(counter, 1))
        while part < parts:
            var m = part % blocks * rows
            var n = part // blocks * width
            multiply_block[P](
                y.unsafe_offset(m * N + n),
                packed.unsafe_offset(m * P.row_size(K)),
                w.unsafe_offset(n * P.Rows.row_bytes(K)),
                scratch,
                min(rows, M - m),
                min(width, N - n),
                N,
                K,
            )
            part = Int(Atomic[Int64].fetch_add(counter, 1))

    parallelize(work, min(parts, num_physical_cores()))
    _ = next_part


@always_inline
def block_rows(M: Int) -> Int:
    """Rows of each block of M but the last: blocks are about equal, and whole vectors."""
    return align_up(ceildiv(M, ceildiv(M, MC)), WIDTH)


@always_inline
def are_in_l2[P: Product](M: Int, K: Int) -> Bool:
    """Whether the packed rows of a block stay in L2 from end to end."""
    return M * P.row_size(K) * 4 <= L2_BYTES


@always_inline
def part_width(N: Int, blocks: Int, rows_are_in_l2: Bool) -> Int:
    """Rows of the weight in each part but the last: more for rows that come from L3, if that leaves enough parts."""
    var wide = 2 * NC
    var enough = ceildiv(N, wide) * blocks >= PARTS * num_physical_cores()
    return NC if rows_are_in_l2 or not enough else wide


@always_inline
def pack_vector[
    P: Product
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
    """Packs up to WIDTH rows of M, where their block begins in the packed rows."""
    var rows = block_rows(M)
    var m = vector * WIDTH // rows * rows
    P.pack_rows(
        packed.unsafe_offset(m * P.row_size(K)), x.unsafe_offset(m * K), vector - m // WIDTH, min(rows, M - m), K
    )


def multiply_block[
    P: Product
](
    y: Pointer[mut=True, Float32, _],
    packed: Pointer[Float32, _],
    w: Pointer[UInt8, _],
    mut scratch: Scratch,
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The products of a block's M rows with `count` rows of the weight, piece by piece of K."""
    var sums = scratch.sums.unsafe_ptr().unsafe_bitcast[Float32]()
    var tiles = scratch.tiles.unsafe_ptr().unsafe_bitcast[Float32]()
    var padded_M = align_up(M, WIDTH)
    var row_bytes = P.Rows.row_bytes(K)
    var size = P.piece_size(K)
    # Rows that stay in L2 leave the weight's rows to be read in order.
    var step = P.ROWS if are_in_l2[P](M, K) else count
    for top in range(0, count, step):
        for k in range(0, K, size):
            for n in range(top, min(top + step, count), P.ROWS):
                var weights = w.unsafe_offset(n * row_bytes + P.Rows.row_bytes(k))
                var rows = min(P.ROWS, count - n)
                var next = P.ROWS * row_bytes
                if step == P.ROWS:
                    next = P.Rows.row_bytes(size) if k + size < K else next - P.Rows.row_bytes(k)
                P.load_tiles(tiles, weights, rows, min(size, K - k), row_bytes)
                var target = sums.unsafe_offset(n * padded_M)
                P.multiply_tiles(target, packed, tiles, weights.unsafe_offset(next), M, rows, k, K)
    transpose_sums(y, sums, M, count, padded_M, N)


def transpose_sums(
    y: Pointer[mut=True, Float32, _], sums: Pointer[Float32, _], M: Int, count: Int, padded_M: Int, N: Int
):
    """Y [M, count] = sums [count, M].T.

    Results of a block that L2 would not hold go past the caches, which would read each line before it is written. Such
    stores are ordered by the next locked instruction of the core: that takes its next part.
    """
    var is_streamed = WIDTH * 4 == LINE_BYTES and M * N * 4 > L2_BYTES and (Int(y) | N * 4) % LINE_BYTES == 0
    for m in range(0, M, WIDTH):
        for n in range(0, count, WIDTH):
            var square = Array[Vector, WIDTH](fill=Vector(0))
            var source = sums.unsafe_offset(n * padded_M + m)
            comptime for i in range(WIDTH):
                square[i] = load(source, 0)
                source = source.unsafe_offset(padded_M)
            transpose(square)
            store_rows(y.unsafe_offset(m * N + n), square, min(WIDTH, M - m), min(WIDTH, count - n), N, is_streamed)


@always_inline
def store_rows(
    y: Pointer[mut=True, Float32, _],
    square: Array[Vector, WIDTH],
    rows: Int,
    columns: Int,
    N: Int,
    is_streamed: Bool,
):
    """Stores the part of a square that Y [rows, columns] has; a whole one past the caches if it is streamed."""
    var target = y
    if rows == WIDTH and columns == WIDTH:
        if is_streamed:
            comptime for i in range(WIDTH):
                target.unsafe_store[alignment=LINE_BYTES, non_temporal=True](square[i])
                target = target.unsafe_offset(N)
            return
        comptime for i in range(WIDTH):
            store(target, 0, square[i])
            target = target.unsafe_offset(N)
        return
    comptime for i in range(WIDTH):
        if i < rows and columns == WIDTH:
            store(target, i * N, square[i])
        elif i < rows:
            for j in range(columns):
                target.unsafe_offset(i * N + j).unsafe_store(square[i][j])
