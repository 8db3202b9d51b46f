"""The blocks of 256 weights (k-quants of GGUF files): groups have small integers as scales, the block float16 ones."""

from std.memory import bitcast

from .block_formats import BlockFormat, Bytes, Floats, Unit


@always_inline
def half(source: Pointer[UInt8, _]) -> Float32:
    return source.unsafe_bitcast[Float16]().unsafe_load().cast[DType.float32]()


@always_inline
def unpack_scales(mut unit: Unit, block: Pointer[UInt8, _]):
    """From two float16 numbers and 12 bytes that hold 8 scales and 8 minima of 6 bits."""
    var words = block.unsafe_offset(4).unsafe_bitcast[UInt32]()
    var low = words.unsafe_load()
    var low_minima = words.unsafe_offset(1).unsafe_load()
    var high = words.unsafe_offset(2).unsafe_load()
    var packed = SIMD[DType.uint32, 4](
        low & 0x3F3F3F3F,
        (high & 0x0F0F0F0F) | (low >> 2 & 0x30303030),
        low_minima & 0x3F3F3F3F,
        (high >> 4 & 0x0F0F0F0F) | (low_minima >> 2 & 0x30303030),
    )
    var both = bitcast[DType.uint8, 16](packed).cast[DType.float32]()
    unit.scales = both * Floats(half(block))
    var minima = both * Floats(half(block.unsafe_offset(2)))
    unit.minima = minima.slice[8, offset=8]().join(SIMD[DType.float32, 8](0))


@always_inline
def alternating(place: Int) -> Int:
    """32 bytes hold two groups in their halves of bits, so that a vector holds each second group."""
    return place // 8 * 8 + place % 8 // 4 * 2 + place % 4 // 2 * 4 + place % 2


struct Q4_K(BlockFormat):
    """Scales and minima of 8 groups, and 128 bytes, each of a weight and the one 32 places on."""

    comptime BLOCK = 256
    comptime BLOCK_BYTES = 144
    comptime UNIT = 256
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 15
    comptime SPAN = 1
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


struct Q5_K(BlockFormat):
    """As Q4_K, with 32 bytes of fifth bits, one bit of each byte for each group."""

    comptime BLOCK = 256
    comptime BLOCK_BYTES = 176
    comptime UNIT = 256
    comptime GROUP = 32
    comptime OFFSET = 0
    comptime LIMIT = 31
    comptime SPAN = 1
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
    comptime SPAN = 1
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
