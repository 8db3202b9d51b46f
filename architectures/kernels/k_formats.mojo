"""The blocks of 256 weights (k-quants of GGUF files): groups have small integers as scales, the block float16 ones."""

from std.memory import bitcast

from .block_formats import BlockFormat, Bytes, Floats, Unit
from .columns import COLUMNS, Column, FloatColumn, ScaleColumns, four_columns, half_column, halves


@always_inline
def half(source: Pointer[UInt8, _]) -> Float32:
    return source.unsafe_bitcast[Float16]().unsafe_load().cast[DType.float32]()


@always_inline
def unpack_six_bits[size: Int](words: Array[SIMD[DType.uint32, size], 3]) -> Array[SIMD[DType.uint32, size], 4]:
    """The bytes of 8 scales and of 8 minima of 6 bits, from 12 bytes."""
    return [
        words[0] & 0x3F3F3F3F,
        (words[2] & 0x0F0F0F0F) | (words[0] >> 2 & 0x30303030),
        words[1] & 0x3F3F3F3F,
        (words[2] >> 4 & 0x0F0F0F0F) | (words[1] >> 2 & 0x30303030),
    ]


@always_inline
def unpack_scales(mut unit: Unit, block: Pointer[UInt8, _]):
    """From two float16 numbers and 12 bytes."""
    var words = Array[SIMD[DType.uint32, 1], 3](fill=0)
    comptime for word in range(3):
        words[word] = block.unsafe_offset(4 + 4 * word).unsafe_bitcast[UInt32]().unsafe_load()
    var packed = unpack_six_bits[1](words)
    var bytes = SIMD[DType.uint32, 4](packed[0], packed[1], packed[2], packed[3])
    var both = bitcast[DType.uint8, 16](bytes).cast[DType.float32]()
    unit.scales = both * Floats(half(block))
    var minima = both * Floats(half(block.unsafe_offset(2)))
    unit.minima = minima.slice[8, offset=8]().join(SIMD[DType.float32, 8](0))


@always_inline
def unpack_scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
    """The same of 16 rows."""
    var words = four_columns(block, stride)
    var scale = halves(words[0])
    var minimum = halves(words[0] >> 16)
    var packed = unpack_six_bits[COLUMNS]([words[1], words[2], words[3]])
    var columns = ScaleColumns()
    comptime for group in range(8):
        comptime shift = UInt32(group % 4 * 8)
        columns.scales[group] = small(packed[group // 4] >> shift) * scale
        columns.minima[group] = small(packed[2 + group // 4] >> shift) * minimum
    return columns^


@always_inline
def small(words: Column) -> FloatColumn:
    """The words' lowest bytes."""
    return (words & 255).cast[DType.int32]().cast[DType.float32]()


@always_inline
def alternating(place: Int) -> Int:
    """32 bytes hold two groups in their halves of bits, so that a vector holds each second group."""
    return place // 8 * 8 + place % 8 // 4 * 2 + place % 4 // 2 * 4 + place % 2


@always_inline
def half_bytes[half: Int](start: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
    """The lower or the higher halves of 32 bytes of each row."""
    var columns = Array[Column, 8](fill=Column(0))
    comptime for part in range(2):
        var bytes = four_columns(start.unsafe_offset(part * 16), stride)
        comptime for word in range(4):
            columns[part * 4 + word] = bytes[word] >> UInt32(4 * half) & 0x0F0F0F0F
    return columns^


struct Q4_K(BlockFormat):
    """Scales and minima of 8 groups, and 128 bytes, each of a weight and the one 32 places on."""

    comptime BLOCK = 256
    comptime BLOCK_BYTES = 144
    comptime UNIT = 256
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 15
    comptime HAS_MINIMA = True

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return alternating(place)

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        unpack_scales(unit, blocks)
        comptime for half in range(2):
            var nibbles = blocks.unsafe_offset(16 + half * 64).unsafe_load[width=64]()
            unit.values[2 * half] = nibbles & 15
            unit.values[2 * half + 1] = nibbles >> 4
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return unpack_scale_columns(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        return half_bytes[group % 2](block.unsafe_offset(16 + group // 2 * 32), stride)


struct Q5_K(BlockFormat):
    """As Q4_K, with 32 bytes of fifth bits, one bit of each byte for each group."""

    comptime BLOCK = 256
    comptime BLOCK_BYTES = 176
    comptime UNIT = 256
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 31
    comptime HAS_MINIMA = True

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return alternating(place)

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        unpack_scales(unit, blocks)
        var bits = blocks.unsafe_offset(16).unsafe_load[width=32]()
        comptime for half in range(2):
            var nibbles = blocks.unsafe_offset(48 + half * 64).unsafe_load[width=64]()
            unit.values[2 * half] = (nibbles & 15) | fifth_bits[4 * half](bits)
            unit.values[2 * half + 1] = (nibbles >> 4) | fifth_bits[4 * half + 1](bits)
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        return unpack_scale_columns(block, stride)

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        var columns = half_bytes[group % 2](block.unsafe_offset(48 + group // 2 * 32), stride)
        comptime for half in range(2):
            var bits = four_columns(block.unsafe_offset(16 + half * 16), stride)
            comptime for word in range(4):
                columns[half * 4 + word] |= (bits[word] >> UInt32(group) & 0x01010101) << 4
        return columns^


@always_inline
def fifth_bits[bit: Int](bits: SIMD[DType.uint8, 32]) -> Bytes:
    """16 where this bit is set, then where the one two higher is."""
    var low = (bits & UInt8(1 << bit)).ne(0).select(SIMD[DType.uint8, 32](16), SIMD[DType.uint8, 32](0))
    var high = (bits & UInt8(4 << bit)).ne(0).select(SIMD[DType.uint8, 32](16), SIMD[DType.uint8, 32](0))
    return low.join(high)


struct Q6_K(BlockFormat):
    """For each half of 128 weights 64 bytes of four bits and 32 of two; then scales of groups of 16, and theirs."""

    comptime BLOCK = 256
    comptime BLOCK_BYTES = 210
    comptime UNIT = 256
    comptime GROUP = 16
    comptime OFFSET = 32
    comptime LIMIT = 63
    comptime HAS_MINIMA = False

    @staticmethod
    @always_inline
    def chunk(place: Int) -> Int:
        return place

    @staticmethod
    @always_inline
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        var unit = Unit()
        comptime for half in range(2):
            var nibbles = blocks.unsafe_offset(half * 64).unsafe_load[width=64]()
            var pairs = blocks.unsafe_offset(128 + half * 32).unsafe_load[width=32]()
            unit.values[2 * half] = (nibbles & 15) | ((pairs << 4).join(pairs << 2) & 48)
            unit.values[2 * half + 1] = (nibbles >> 4) | (pairs.join(pairs >> 2) & 48)
        var scales = blocks.unsafe_offset(192).unsafe_bitcast[Int8]().unsafe_load[width=16]()
        unit.scales = scales.cast[DType.float32]() * Floats(half(blocks.unsafe_offset(208)))
        return unit^

    @staticmethod
    @always_inline
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        var words = four_columns(block.unsafe_offset(192), stride)
        var scale = half_column(block.unsafe_offset(208), stride)
        var columns = ScaleColumns()
        comptime for group in range(16):
            var bytes = (words[group // 4] << UInt32(24 - group % 4 * 8)).cast[DType.int32]() >> 24
            columns.scales[group] = bytes.cast[DType.float32]() * scale
        return columns^

    @staticmethod
    @always_inline
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        comptime half = group // 4
        comptime quarter = group % 4
        var columns = half_bytes[quarter // 2](block.unsafe_offset(half * 64 + quarter % 2 * 32), stride)
        comptime for part in range(2):
            var pairs = four_columns(block.unsafe_offset(128 + half * 32 + part * 16), stride)
            comptime for word in range(4):
                columns[part * 4 + word] |= (pairs[word] >> UInt32(2 * quarter) & 0x03030303) << 4
        return columns^
