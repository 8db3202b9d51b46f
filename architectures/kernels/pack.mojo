"""Rows of activations, packed for products with tiles of weights.

Whole vectors of rows are transposed: a block of rows is cut along K, and each piece into panels of up to NV vectors of
rows, [K of the piece, rows], which the micro-kernel reads in order. The few rows that are left are copied as they are.
"""

from std.math import align_down, align_up, ceildiv

from .vectors import HAS_32_REGISTERS, WIDTH, Vector, store, transpose
from .words import Floats, Words, copy_words, load_last_words, load_words

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


struct Panels[most: Int = NV]:
    """How the vectors of rows of a block are divided: panels are about equal, so that none is slow.

    They are asked for as often as a tile meets a panel, where a division would take long.
    """

    var count: Int
    var width: Int
    """Vectors of each panel, but for the first ones."""
    var num_wide: Int
    """Of the first panels, which have one more."""

    @always_inline
    def __init__(out self, vectors: Int):
        self.count = ceildiv(vectors, Self.most)
        self.width = vectors // max(1, self.count)
        self.num_wide = vectors - self.width * self.count

    @always_inline
    def start(self, panel: Int) -> Int:
        """First vector of this panel."""
        return panel * self.width + min(panel, self.num_wide)

    @always_inline
    def width_of(self, panel: Int) -> Int:
        return self.width + Int(panel < self.num_wide)

    def with_vector(self, vector: Int) -> Int:
        """The panel that has this vector."""
        var panel = 0
        while self.start(panel + 1) <= vector:
            panel += 1
        return panel


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
    step: Int, W: Words = Floats
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
    """Packs rows vector * WIDTH to (vector + 1) * WIDTH of the M rows of a block, as far as there are.

    Pieces of K are multiples of `step`.
    """
    var words = ceildiv(K, W.VALUES)
    var vectors = num_vectors(M)
    var first = vector * WIDTH
    var rows = min(WIDTH, M - first)
    if vector < vectors:
        transpose_rows[step, W](packed, x.unsafe_offset(first * K), rows, K, vector, vectors)
        return
    for m in range(rows):
        var target = packed.unsafe_offset(first * words + m * rest_stride(words))
        copy_words[W](target, x.unsafe_offset((first + m) * K), K)


def transpose_rows[
    step: Int, W: Words
](
    packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], rows: Int, K: Int, vector: Int, vectors: Int
):
    """Packs up to WIDTH rows of x as a vector of rows of a block that has `vectors`."""
    var panels = Panels(vectors)
    var panel = panels.with_vector(vector)
    var first = panels.start(panel)
    var stride = panels.width_of(panel) * WIDTH
    var words = ceildiv(K, W.VALUES)
    var size = piece_size[step](words)
    for word in range(0, words, size):
        var depth = min(size, words - word)
        var target = packed.unsafe_offset((word * vectors + first * depth + vector - first) * WIDTH)
        var k = word * W.VALUES
        transpose_piece[W](target, x.unsafe_offset(k), rows, min(depth * W.VALUES, K - k), K, stride)


@always_inline
def transpose_piece[
    W: Words
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], rows: Int, depth: Int, K: Int, stride: Int):
    """Packed [words of depth, WIDTH] = x [rows, depth].T, and zeros."""
    comptime step = WIDTH * W.VALUES
    for k in range(0, align_down(depth, step), step):
        var square = Array[Vector, WIDTH](fill=Vector(0))
        comptime for m in range(WIDTH):
            if m < rows:
                square[m] = load_words[W](x.unsafe_offset(m * K + k))
        store_square(packed.unsafe_offset(k // W.VALUES * stride), square, WIDTH, stride)
    var rest = depth % step
    if rest > 0:
        var square = Array[Vector, WIDTH](fill=Vector(0))
        for m in range(rows):
            square[m] = load_last_words[W](x.unsafe_offset(m * K + depth - rest), rest)
        store_square(packed.unsafe_offset((depth - rest) // W.VALUES * stride), square, ceildiv(rest, W.VALUES), stride)


@always_inline
def store_square(packed: Pointer[mut=True, Float32, _], mut square: Array[Vector, WIDTH], count: Int, stride: Int):
    """Stores the first columns of a square as rows."""
    transpose(square)
    comptime for i in range(WIDTH):
        if i < count:
            store(packed, i * stride, square[i])
