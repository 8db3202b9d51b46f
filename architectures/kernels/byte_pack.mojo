"""Rows of activations, quantized in groups of 32 and packed for products with tiles of bytes.

A block of rows is cut along K, and each piece into panels of up to NV vectors of rows. A panel is a record for each
group: WORDS vectors of words for each vector of rows, which are its 32 bytes, four to a word; what the products start
from, SHIFT less what the weights' offset adds, for each of the weights' groups; the scales; with minima the group's
sums. Weights without an offset start from SHIFT alone.
"""

from std.bit import log2_floor
from std.math import ceildiv
from std.memory import bitcast

from .block_columns import GROUP
from .block_formats import BlockFormat
from .dot_bytes import IS_512, dot_bytes
from .pack import Panels, piece_size
from .quantize_rows import factor_of, magnitudes_of, scale_of, to_bytes
from .vectors import WIDTH, Vector, load, store, transpose

comptime NV = 2 if IS_512 else 1
"""Most vectors of rows in a panel."""
comptime KC = 512
"""Most values along K in a piece."""
comptime SHIFT = Float32(12582912)
"""1.5 * 2 ** 23. An integer below 2 ** 22, added to its bits, is added to the number: sums that start from these bits
are read as float32 without being converted, and what a fused multiplication with a scale of up to 22 bits then takes
away again is exact."""
comptime Magnitudes = SIMD[DType.uint32, WIDTH]


@always_inline
def num_starts[F: BlockFormat]() -> Int:
    return GROUP // F.GROUP if F.OFFSET > 0 else 0


@always_inline
def num_words[F: BlockFormat]() -> Int:
    return 8 + num_starts[F]() + (2 if F.HAS_MINIMA else 1)


def pack_byte_rows[
    F: BlockFormat
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
    """Packs rows vector * WIDTH to (vector + 1) * WIDTH of the M rows of a block.

    The last row stands for those that are not there; nobody uses their products.
    """
    comptime words = num_words[F]()
    var vectors = ceildiv(M, WIDTH)
    var panels = Panels[NV](vectors)
    var panel = panels.with_vector(vector)
    var first = panels.start(panel)
    var width = panels.width_of(panel)
    var size = piece_size[F.UNIT, KC](K)
    var starts = Array[Int, WIDTH](fill=0)
    comptime for m in range(WIDTH):
        starts[m] = min(vector * WIDTH + m, M - 1) * K
    var bytes = Array[Vector, KC // 4](fill=Vector(0))
    for k in range(0, K, size):
        var groups = min(size, K - k) // GROUP
        var piece = packed.unsafe_offset(((k // GROUP * vectors + first * groups) * words + vector - first) * WIDTH)
        for group in range(groups):
            var scales = quantize_group(bytes, x.unsafe_offset(k + group * GROUP), starts, group)
            store(piece, (group * words + 8 + num_starts[F]()) * width * WIDTH, scales)
        for word in range(0, groups * 8, WIDTH):
            store_words[words](piece, bytes, word, groups * 8, width)
        for group in range(groups):
            add_sums[F](piece.unsafe_offset(group * words * width * WIDTH), width)


@always_inline
def quantize_group(
    mut bytes: Array[Vector, KC // 4], x: Pointer[Float32, _], starts: Array[Int, WIDTH], group: Int
) -> Vector:
    """Writes the bytes of this group of each row, [WIDTH, KC], and returns the rows' scales."""
    var magnitudes = Array[Magnitudes, WIDTH](fill=Magnitudes(0))
    comptime for m in range(WIDTH):
        comptime for i in range(0, GROUP, WIDTH):
            magnitudes[m] = max(magnitudes[m], magnitudes_of[WIDTH](load(x, starts[m] + i)))
    var greatest = bitcast[DType.float32, WIDTH](greatest_of_each(magnitudes))
    var factors = factor_of[WIDTH](greatest)
    var target = bytes.unsafe_ptr().unsafe_bitcast[Int8]().unsafe_offset(group * GROUP)
    comptime for m in range(WIDTH):
        var values = x.unsafe_offset(starts[m]).unsafe_load[width=GROUP]()
        target.unsafe_offset(m * KC).unsafe_store(to_bytes(values, factors[m]))
    return scale_of[WIDTH](greatest)


@always_inline
def greatest_of_each(rows: Array[Magnitudes, WIDTH]) -> Magnitudes:
    """The greatest of each row: each round of interleaving halves what is left of the rows, and their number."""
    var left = rows.copy()
    comptime for round in range(log2_floor(WIDTH)):
        comptime half = WIDTH >> (round + 1)
        comptime for m in range(half):
            var both = left[m].interleave(left[m + half])
            left[m] = max(both.slice[WIDTH, offset=0](), both.slice[WIDTH, offset=WIDTH]())
    return left[0]


@always_inline
def store_words[
    record_words: Int
](piece: Pointer[mut=True, Float32, _], bytes: Array[Vector, KC // 4], first: Int, count: Int, width: Int):
    """Stores WIDTH words of each row from the first one on, as far as there are, as vectors of rows in their records.
    """
    var square = Array[Vector, WIDTH](fill=Vector(0))
    comptime for m in range(WIDTH):
        square[m] = load(bytes.unsafe_ptr().unsafe_bitcast[Float32](), m * (KC // 4) + first)
    transpose(square)
    comptime for i in range(WIDTH):
        var word = first + i
        if word < count:
            store(piece, (word // 8 * record_words + word % 8) * width * WIDTH, square[i])


@always_inline
def add_sums[F: BlockFormat](record: Pointer[mut=True, Float32, _], width: Int):
    """Writes what the products start from, or the sums of the groups."""
    comptime starts = num_starts[F]()
    comptime for start in range(starts):
        var sums = sum_words[F.OFFSET, F.GROUP // 4](record.unsafe_offset(start * F.GROUP // 4 * width * WIDTH), width)
        store(record, (8 + start) * width * WIDTH, bitcast[DType.float32, WIDTH](bitcast[DType.int32](SHIFT) - sums))
    comptime if F.HAS_MINIMA:
        var sums = sum_words[1, GROUP // 4](record, width).cast[DType.float32]()
        store(record, (9 + starts) * width * WIDTH, sums * load(record, (8 + starts) * width * WIDTH))


@always_inline
def sum_words[factor: Int, count: Int](words: Pointer[Float32, _], width: Int) -> SIMD[DType.int32, WIDTH]:
    """The sum of the bytes of so many words of each row, times the factor."""
    var sums = SIMD[DType.int32, WIDTH](0)
    comptime for word in range(count):
        var bytes = bitcast[DType.int8, WIDTH * 4](load(words, word * width * WIDTH))
        sums = dot_bytes[factor, WIDTH](sums, SIMD[DType.uint8, WIDTH * 4](factor), bytes)
    return sums
