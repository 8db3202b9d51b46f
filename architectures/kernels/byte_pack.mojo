"""Rows of activations, quantized in groups of 32 and packed for products with tiles of bytes.

A block of rows is cut along K, and each piece into panels of up to NV vectors of rows. A panel is a record for each
group: WORDS vectors of words for each vector of rows, which are its 32 bytes, four to a word; what the products start
from, which takes back the weights' offset, for each of the weights' groups; the scales; with minima the group's sums.
"""

from std.math import ceildiv
from std.memory import bitcast

from .block_columns import GROUP
from .block_formats import BlockFormat
from .dot_bytes import IS_512, dot_bytes
from .pack import panel_start, piece_size
from .quantize_rows import Quantized, quantize
from .vectors import WIDTH, load, store

comptime NV = 2 if IS_512 else 1
"""Most vectors of rows in a panel."""
comptime KC = 512
"""Most values along K in a piece."""


@always_inline
def num_starts[F: BlockFormat]() -> Int:
    return GROUP // F.GROUP if F.OFFSET > 0 else 0


@always_inline
def num_words[F: BlockFormat]() -> Int:
    return 8 + num_starts[F]() + (2 if F.HAS_MINIMA else 1)


def pack_byte_rows[
    F: BlockFormat
](packed: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], vector: Int, M: Int, K: Int):
    """Packs rows vector * WIDTH to (vector + 1) * WIDTH of the M rows of a block, and zeros."""
    comptime words = num_words[F]()
    var vectors = ceildiv(M, WIDTH)
    var panel = 0
    while panel_start[NV](panel + 1, vectors) <= vector:
        panel += 1
    var first = panel_start[NV](panel, vectors)
    var width = panel_start[NV](panel + 1, vectors) - first
    var size = piece_size[F.UNIT, KC](K)
    var rows = x.unsafe_offset(vector * WIDTH * K)
    for k in range(0, K, size):
        var groups = min(size, K - k) // GROUP
        var piece = packed.unsafe_offset(((k // GROUP * vectors + first * groups) * words + vector - first) * WIDTH)
        for group in range(groups):
            var record = piece.unsafe_offset(group * words * width * WIDTH)
            pack_group[F](record, rows.unsafe_offset(k + group * GROUP), min(WIDTH, M - vector * WIDTH), width, K)
        # Words that were stored one by one are read as vectors only when they have left the store buffer.
        for group in range(groups):
            add_sums[F](piece.unsafe_offset(group * words * width * WIDTH), width)


@always_inline
def pack_group[
    F: BlockFormat
](record: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], rows: Int, width: Int, K: Int):
    """Quantizes a group of up to WIDTH rows; their words are `width` vectors apart."""
    for m in range(WIDTH):
        var values = Quantized(0)
        var scale = Float32(0)
        if m < rows:
            scale = quantize(x.unsafe_offset(m * K), values)
        var words = bitcast[DType.float32, GROUP // 4](values)
        var column = record.unsafe_offset(m)
        comptime for word in range(GROUP // 4):
            column.unsafe_offset(word * width * WIDTH).unsafe_store(words[word])
        column.unsafe_offset((8 + num_starts[F]()) * width * WIDTH).unsafe_store(scale)


@always_inline
def add_sums[F: BlockFormat](record: Pointer[mut=True, Float32, _], width: Int):
    """Writes what the products start from, or the sums of the groups."""
    comptime starts = num_starts[F]()
    comptime for start in range(starts):
        var sums = sum_words[F.OFFSET, F.GROUP // 4](record.unsafe_offset(start * F.GROUP // 4 * width * WIDTH), width)
        store(record, (8 + start) * width * WIDTH, bitcast[DType.float32, WIDTH](-sums))
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
