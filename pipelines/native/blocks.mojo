"""Blocks of 32 weights with one scale: q8_0, q5_1, q5_0, q4_1 and q4_0, bit for bit as the gguf package writes them.

Source: ggml's quantize_row_q8_0_ref, and so on.
"""

from std.math import floor, iota
from std.memory import bitcast
from std.utils.numerics import isinf

from values import largest

comptime BLOCK = 32
comptime Values = SIMD[DType.float32, BLOCK]
comptime SMALLEST = Float32(2.0**-120)
"""Scales up to this count as 0, as they are as a float16: processors take some for 0, and inverses can be infinite."""
comptime Bytes = Pointer[mut=True, UInt8, _]


@always_inline
def store_half(target: Bytes, value: Float32) -> Bool:
    """Stores a scale as float16; returns whether it fits."""
    var half = value.cast[DType.float16]()
    target.unsafe_bitcast[Float16]().unsafe_store[alignment=1](half)
    return not isinf(half)


@always_inline
def store_factor(target: Bytes, mut value: Float32) -> Bool:
    """Stores a factor of scales as float16, as `store_half`, and gives it that value.

    A scale is a limited multiple of the factor, so the next larger float16 is nearer to it than one that is much too
    small, as the nearest can be among the subnormal ones.
    """
    var half = value.cast[DType.float16]()
    if abs(half.cast[DType.float32]()) < abs(value) * (1 - 1.0 / 128):
        half = bitcast[DType.float16, 1](bitcast[DType.uint16, 1](half) + 1)
    target.unsafe_bitcast[Float16]().unsafe_store[alignment=1](half)
    value = half.cast[DType.float32]()
    return not isinf(half)


@always_inline
def quotients(x: Values, scale: Float32, shift: Float32) -> Values:
    """X / scale + shift. The smallest scales count as 0."""
    var inverse = 1 / scale if abs(scale) > SMALLEST else Float32(0)
    # The products are at most 128 but for their rounding. The limits only keep the compiler from fusing product and
    # sum, whose result would differ from the sum of a rounded product.
    return (x * inverse).clamp(-129, 129) + shift


@always_inline
def write_q8_0(target: Bytes, x: Values) -> Bool:
    """Writes the scale, then a signed byte for each weight. Returns whether the scale fits into float16."""
    var scale = abs(x).reduce_max() / 127
    var exact = quotients(x, scale, 0)
    var magnitudes = abs(exact)
    var whole = floor(magnitudes)
    var rounded = whole + floor(2 * (magnitudes - whole))  # half away from zero
    var signed = exact.lt(0).select(-rounded, rounded)
    target.unsafe_offset(2).unsafe_store(bitcast[DType.uint8, BLOCK](signed.cast[DType.int8]()))
    return store_half(target, scale)


@always_inline
def write_q5_0(target: Bytes, x: Values) -> Bool:
    """Writes the scale, the fifth bits, then four bits of weights i and i + 16 to a byte. Returns as `write_q8_0`."""
    var scale = largest[BLOCK](x) / -16
    store_five_bits(target.unsafe_offset(2), min(quotients(x, scale, 16.5), 31).cast[DType.uint8]())
    return store_half(target, scale)


@always_inline
def write_q5_1(target: Bytes, x: Values) -> Bool:
    """Writes scale and minimum, then as `write_q5_0`. Returns whether both fit into float16."""
    var minimum = x.reduce_min()
    var scale = (x.reduce_max() - minimum) / 31
    store_five_bits(target.unsafe_offset(4), min(quotients(x - minimum, scale, 0.5), 31).cast[DType.uint8]())
    return store_half(target, scale) & store_half(target.unsafe_offset(2), minimum)


@always_inline
def write_q4_0(target: Bytes, x: Values) -> Bool:
    """Writes the scale, then weights i and i + 16 to a byte. Returns as `write_q8_0`."""
    var scale = largest[BLOCK](x) / -8
    store_nibbles(target.unsafe_offset(2), min(quotients(x, scale, 8.5), 15).cast[DType.uint8]())
    return store_half(target, scale)


@always_inline
def write_q4_1(target: Bytes, x: Values) -> Bool:
    """Writes scale and minimum, then as `write_q4_0`. Returns whether both fit into float16."""
    var minimum = x.reduce_min()
    var scale = (x.reduce_max() - minimum) / 15
    store_nibbles(target.unsafe_offset(4), min(quotients(x - minimum, scale, 0.5), 15).cast[DType.uint8]())
    return store_half(target, scale) & store_half(target.unsafe_offset(2), minimum)


@always_inline
def store_five_bits(target: Bytes, quants: SIMD[DType.uint8, BLOCK]):
    """Stores the fifth bits, then the others."""
    var high = ((quants >> 4).cast[DType.uint32]() << iota[DType.uint32, BLOCK]()).reduce_or()
    target.unsafe_bitcast[UInt32]().unsafe_store[alignment=1](high)
    store_nibbles(target.unsafe_offset(4), quants & 15)


@always_inline
def store_nibbles(target: Bytes, quants: SIMD[DType.uint8, BLOCK]):
    comptime half = BLOCK // 2
    target.unsafe_store(quants.slice[half, offset=0]() | (quants.slice[half, offset=half]() << 4))
