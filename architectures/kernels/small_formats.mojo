"""The blocks of 32 weights: a float16 scale, perhaps a float16 minimum, then the values."""

from std.memory import bitcast
from std.utils import IndexList

from .block_formats import BlockFormat, Bytes, Floats, Unit
from .columns import Column, ScaleColumns, four_columns, half_column, halves
from .vectors import IS_512


@always_inline
def scales_of[BLOCK_BYTES: Int, count: Int, word: Int = 0](blocks: Pointer[UInt8, _]) -> Floats:
    """The float16 number at this word of each of `count` blocks, then zeros."""
    var bits = SIMD[DType.uint16, count](0)
    comptime if IS_512 and count == 4:
        bits = words_of[BLOCK_BYTES, word, 1](blocks).slice[count]()
    else:
        comptime for block in range(count):
            var place = blocks.unsafe_offset(block * BLOCK_BYTES + 2 * word)
            bits[block] = place.unsafe_bitcast[UInt16]().unsafe_load()
    var result = Floats(0)
    return result.insert(bitcast[DType.float16, count](bits).cast[DType.float32]())


@always_inline
def nibbles_of[BLOCK_BYTES: Int](blocks: Pointer[UInt8, _]) -> Bytes:
    """The last 16 bytes of each of four blocks."""
    comptime if IS_512:
        return bitcast[DType.uint8, 64](words_of[BLOCK_BYTES, BLOCK_BYTES // 2 - 8, 8](blocks))
    else:
        var parts = Array[SIMD[DType.uint8, 16], 4](fill=SIMD[DType.uint8, 16](0))
        comptime for block in range(4):
            parts[block] = blocks.unsafe_offset((block + 1) * BLOCK_BYTES - 16).unsafe_load[width=16]()
        return parts[0].join(parts[1]).join(parts[2].join(parts[3]))


@always_inline
def words_of[BLOCK_BYTES: Int, first: Int, count: Int](blocks: Pointer[UInt8, _]) -> SIMD[DType.uint16, 32]:
    """The `count` words from `first` of each of four blocks, over and over: a shuffle of their first and last 32."""
    comptime places = places_of[BLOCK_BYTES, first, count]()
    var start = blocks.unsafe_bitcast[UInt16]().unsafe_load[width=32]()
    var end = blocks.unsafe_offset(4 * BLOCK_BYTES - 64).unsafe_bitcast[UInt16]().unsafe_load[width=32]()
    return start.shuffle[places](end)


def places_of[BLOCK_BYTES: Int, first: Int, count: Int]() -> IndexList[32]:
    var places = IndexList[32]()
    for i in range(32):
        var word = i // count % 4 * (BLOCK_BYTES // 2) + first + i % count
        places[i] = word if word < 32 else word - 2 * BLOCK_BYTES + 64
    return places


@always_inline
def fifth_bits[BLOCK_BYTES: Int, word: Int, half: Int](blocks: Pointer[UInt8, _]) -> Bytes:
    """16 where a bit is set, of half of the 32 bits at this word of each of four blocks."""
    var words = SIMD[DType.uint16, 8](0)
    comptime if IS_512:
        words = words_of[BLOCK_BYTES, word, 2](blocks).slice[8]()
    else:
        comptime for i in range(8):
            var place = blocks.unsafe_offset(i // 2 * BLOCK_BYTES + (word + i % 2) * 2)
            words[i] = place.unsafe_bitcast[UInt16]().unsafe_load()
    var source = bitcast[DType.uint8, 16](words)
    var bytes = Bytes(0)
    var bits = Bytes(0)
    comptime for i in range(64):
        comptime byte = i // 16 * 4 + half * 2 + i % 16 // 8
        bytes[i] = source[byte]
        bits[i] = UInt8(1 << (i % 8))
    return (bytes & bits).ne(0).select(Bytes(16), Bytes(0))


@always_inline
def scale_column(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
    """Of blocks that begin with a float16 scale."""
    var columns = ScaleColumns()
    columns.scales[0] = half_column(block, stride)
    return columns^


@always_inline
def scale_and_minimum(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
    """Of blocks that begin with a float16 scale and the minimum's opposite."""
    var both = four_columns(block, stride)[0]
    var columns = ScaleColumns()
    columns.scales[0] = halves(both)
    columns.minima[0] = -halves(both >> 16)
    return columns^


@always_inline
def nibble_columns(start: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
    """16 bytes of each row: the values in their lower halves, then those in the higher ones."""
    var bytes = four_columns(start, stride)
    var columns = Array[Column, 8](fill=Column(0))
    comptime for word in range(4):
        columns[word] = bytes[word] & 0x0F0F0F0F
        columns[4 + word] = bytes[word] >> 4 & 0x0F0F0F0F
    return columns^


@always_inline
def add_fifth_bits(mut columns: Array[Column, 8], bits: Column):
    """Adds 16 where a value's bit is set: the factor moves bit i of four, and nothing else, to the fifth of byte i."""
    comptime for word in range(8):
        columns[word] |= (bits >> UInt32(4 * word) & 15) * 0x02040810 & 0x10101010


struct Q8_0(BlockFormat):
    """A scale and 32 signed bytes."""

    comptime BLOCK = 32
    comptime BLOCK_BYTES = 34
    comptime UNIT = 64
    comptime GROUP = 32
    comptime OFFSET = 128
    comptime LIMIT = 255
    comptime HAS_MINIMA = False

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        var first = blocks.unsafe_offset(2).unsafe_load[width=32]()
        unit.values[0] = first.join(blocks.unsafe_offset(36).unsafe_load[width=32]()) ^ 128
        unit.scales = scales_of[34, 2](blocks)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return scale_column(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        var columns = Array[Column, 8](fill=Column(0))
        comptime for half in range(2):
            var bytes = four_columns(block.unsafe_offset(2 + half * 16), stride)
            comptime for word in range(4):
                columns[half * 4 + word] = bytes[word] ^ 0x80808080
        return columns^


struct Q4_0(BlockFormat):
    """A scale and 16 bytes, each of a weight and the one 16 places on."""

    comptime BLOCK = 32
    comptime BLOCK_BYTES = 18
    comptime UNIT = 128
    comptime GROUP = 32
    comptime OFFSET = 8
    comptime LIMIT = 15
    comptime HAS_MINIMA = False

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place % 4 * 2 + place // 4

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        var nibbles = nibbles_of[18](blocks)
        unit.values[0] = nibbles & 15
        unit.values[1] = nibbles >> 4
        unit.scales = scales_of[18, 4](blocks)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return scale_column(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        return nibble_columns(block.unsafe_offset(2), stride)


struct Q4_1(BlockFormat):
    """As Q4_0, with a minimum after the scale."""

    comptime BLOCK = 32
    comptime BLOCK_BYTES = 20
    comptime UNIT = 128
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 15
    comptime HAS_MINIMA = True

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place % 4 * 2 + place // 4

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        var nibbles = nibbles_of[20](blocks)
        unit.values[0] = nibbles & 15
        unit.values[1] = nibbles >> 4
        unit.scales = scales_of[20, 4](blocks)
        unit.minima = -scales_of[20, 4, 1](blocks)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return scale_and_minimum(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        return nibble_columns(block.unsafe_offset(4), stride)


struct Q5_0(BlockFormat):
    """As Q4_0, with the fifth bits of the weights after the scale."""

    comptime BLOCK = 32
    comptime BLOCK_BYTES = 22
    comptime UNIT = 128
    comptime GROUP = 32
    comptime OFFSET = 16
    comptime LIMIT = 31
    comptime HAS_MINIMA = False

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place % 4 * 2 + place // 4

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        var nibbles = nibbles_of[22](blocks)
        unit.values[0] = (nibbles & 15) | fifth_bits[22, 1, 0](blocks)
        unit.values[1] = (nibbles >> 4) | fifth_bits[22, 1, 1](blocks)
        unit.scales = scales_of[22, 4](blocks)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        var columns = ScaleColumns()
        columns.scales[0] = halves(four_columns(block, stride)[0])
        return columns^

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        var columns = nibble_columns(block.unsafe_offset(6), stride)
        var words = four_columns(block, stride)
        add_fifth_bits(columns, words[0] >> 16 | words[1] << 16)
        return columns^


struct Q5_1(BlockFormat):
    """As Q5_0, with a minimum after the scale."""

    comptime BLOCK = 32
    comptime BLOCK_BYTES = 24
    comptime UNIT = 128
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 31
    comptime HAS_MINIMA = True

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place % 4 * 2 + place // 4

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        var nibbles = nibbles_of[24](blocks)
        unit.values[0] = (nibbles & 15) | fifth_bits[24, 2, 0](blocks)
        unit.values[1] = (nibbles >> 4) | fifth_bits[24, 2, 1](blocks)
        unit.scales = scales_of[24, 4](blocks)
        unit.minima = -scales_of[24, 4, 1](blocks)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return scale_and_minimum(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        var columns = nibble_columns(block.unsafe_offset(8), stride)
        add_fifth_bits(columns, four_columns(block, stride)[1])
        return columns^
