"""Rows of activations, packed for products with tiles of weights.

Whole vectors of rows are transposed: a block of rows is cut along K, and each piece into panels of up to NV vectors of
rows, [K of the piece, rows], which the micro-kernel reads in order. The few rows that are left are copied as they are.
"""

from std.math import align_down, align_up, ceildiv

from .vectors import HAS_32_REGISTERS, WIDTH, Vector, load, store, transpose, widen

comptime NV = 4 if HAS_32_REGISTERS else 2
"""Most vectors of rows in a panel: with NR rows of the weight, their sums leave registers for what is multiplied."""
comptime KC = 256
"""Most values along K in a piece. Sums of pieces are added, so that errors grow less than in one long sum."""
comptime MAX_REST = WIDTH * 3 // 4
"""More rows than these, left over by whole vectors, are filled up with zeros to one more."""


@always_inline
def num_vectors(M: Int) -> Int:
    """Vectors of transposed rows among M."""
    return (M + WIDTH - MAX_REST - 1) // WIDTH


@always_inline
def piece_size[step: Int, most: Int = KC](K: Int) -> Int:
    """Values along K of each piece but the last: pieces are about equal, and whole steps."""
    return align_up(ceildiv(K, ceildiv(K, most)), step)


@always_inline
def panel_start[most: Int = NV](panel: Int, vectors: Int) -> Int:
    """First of a block's vectors of rows in this panel: panels are about equal, so that none is slow."""
    return vectors * panel // ceildiv(vectors, most)


@always_inline
def rest_stride(K: Int) -> Int:
    """Distance of rows that are not transposed: no power of two, which would put them into the same places of L1."""
    return align_up(K, WIDTH) + WIDTH


@always_inline
def packed_size(M: Int, K: Int) -> Int:
    """Values of M packed rows."""
    var whole = num_vectors(M) * WIDTH
    return whole * K + max(0, M - whole) * rest_stride(K)


@always_inline
def pack_rows[
    step: Int
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
    """Packs rows vector * WIDTH to (vector + 1) * WIDTH of the M rows of a block, as far as there are.

    Pieces of K are multiples of `step`.
    """
    var vectors = num_vectors(M)
    var first = vector * WIDTH
    var rows = min(WIDTH, M - first)
    if vector < vectors:
        transpose_rows[step](packed, x.unsafe_offset(first * K), rows, K, vector, vectors)
        return
    for m in range(rows):
        widen(packed.unsafe_offset(first * K + m * rest_stride(K)), x.unsafe_offset((first + m) * K), K)


def transpose_rows[
    step: Int
](
    packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], rows: Int, K: Int, vector: Int, vectors: Int
):
    """Packs up to WIDTH rows of x as a vector of rows of a block that has `vectors`."""
    var panel = 0
    while panel_start(panel + 1, vectors) <= vector:
        panel += 1
    var first = panel_start(panel, vectors)
    var stride = (panel_start(panel + 1, vectors) - first) * WIDTH
    var size = piece_size[step](K)
    for k in range(0, K, size):
        var depth = min(size, K - k)
        var target = packed.unsafe_offset((k * vectors + first * depth + vector - first) * WIDTH)
        transpose_piece(target, x.unsafe_offset(k), rows, depth, K, stride)


@always_inline
def transpose_piece(
    packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], rows: Int, depth: Int, K: Int, stride: Int
):
    """Packed [depth, WIDTH] = x [rows, depth].T, and zeros."""
    var whole = align_down(depth, WIDTH)
    for k in range(0, whole, WIDTH):
        var square = Array[Vector, WIDTH](fill=Vector(0))
        comptime for m in range(WIDTH):
            if m < rows:
                square[m] = load(x, m * K + k)
        transpose(square)
        comptime for i in range(WIDTH):
            store(packed, (k + i) * stride, square[i])
    for k in range(whole, depth):
        var column = Vector(0)
        for m in range(rows):
            column[m] = x.unsafe_offset(m * K + k).unsafe_load()
        store(packed, k * stride, column)
