"""Columns of weights: the words at one place of 16 rows, side by side in a vector."""

from std.memory import bitcast
from std.utils import IndexList

comptime COLUMNS = 16
"""Rows of the weight."""
comptime Column = SIMD[DType.uint32, COLUMNS]
comptime FloatColumn = SIMD[DType.float32, COLUMNS]


struct ScaleColumns(Movable):
    """The scales of a block's groups and the minima of its groups of 32, as far as used."""

    var scales: Array[FloatColumn, 16]
    var minima: Array[FloatColumn, 8]

    @always_inline
    def __init__(out self):
        self.scales = Array[FloatColumn, 16](fill=FloatColumn(0))
        self.minima = Array[FloatColumn, 8](fill=FloatColumn(0))


@always_inline
def four_columns(start: Pointer[UInt8, _], stride: Int) -> Array[Column, 4]:
    """The four words of 16 bytes of each row, which are `stride` bytes apart."""
    var rows = Array[Column, 4](fill=Column(0))
    comptime for row in range(4):
        rows[row] = each_fourth_row(start.unsafe_offset(row * stride), stride)
    var columns = Array[Column, 4](fill=Column(0))
    comptime for half in range(2):
        var first = rows[0].shuffle[words_in_turns(2 * half, 1)](rows[1])
        var second = rows[2].shuffle[words_in_turns(2 * half, 1)](rows[3])
        columns[2 * half] = first.shuffle[words_in_turns(0, 2)](second)
        columns[2 * half + 1] = first.shuffle[words_in_turns(2, 2)](second)
    return columns^


@always_inline
def each_fourth_row(start: Pointer[UInt8, _], stride: Int) -> Column:
    """16 bytes of each fourth row."""
    var parts = Array[SIMD[DType.uint8, 16], 4](fill=SIMD[DType.uint8, 16](0))
    comptime for part in range(4):
        parts[part] = start.unsafe_offset(4 * part * stride).unsafe_load[width=16]()
    return bitcast[DType.uint32, COLUMNS](parts[0].join(parts[1]).join(parts[2].join(parts[3])))


def words_in_turns(first: Int, count: Int) -> IndexList[16]:
    """From each four words of two vectors two words each, those at `first`, `count` words of a vector at a time."""
    var places = IndexList[16]()
    for i in range(16):
        var turn = i % 4 // count
        places[i] = i // 4 * 4 + first + turn // 2 * count + i % count + turn % 2 * 16
    return places


@always_inline
def half_column(start: Pointer[UInt8, _], stride: Int) -> FloatColumn:
    """A float16 number of each row."""
    var bits = SIMD[DType.uint16, COLUMNS](0)
    comptime for row in range(COLUMNS):
        bits[row] = start.unsafe_offset(row * stride).unsafe_bitcast[UInt16]().unsafe_load()
    return bitcast[DType.float16, COLUMNS](bits).cast[DType.float32]()


@always_inline
def halves(words: Column) -> FloatColumn:
    """The float16 numbers in the words' lower halves."""
    return bitcast[DType.float16, COLUMNS](words.cast[DType.uint16]()).cast[DType.float32]()


@always_inline
def float_at(record: Pointer[UInt8, _], offset: Int) -> FloatColumn:
    """A number, over and over."""
    return FloatColumn(record.unsafe_offset(offset).unsafe_bitcast[Float32]().unsafe_load())
