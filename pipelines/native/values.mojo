"""Weights as they are read: float32, or bfloat16 that is widened."""

from std.bit import log2_floor
from std.memory import bitcast


@always_inline
def load_values[
    dtype: DType, //, size: Int
](source: Pointer[Scalar[dtype], _], offset: Int) -> SIMD[DType.float32, size]:
    """As float32. Bfloat16 is widened by a shift: after a cast the compiler takes magnitudes in bfloat16 instead, which
    is a function call for each on CPUs without instructions for it."""
    var values = source.unsafe_offset(offset).unsafe_load[width=size]()
    comptime if dtype == DType.bfloat16:
        var bits = bitcast[DType.uint16, size](values).cast[DType.uint32]() << 16
        return bitcast[DType.float32, size](bits)
    else:
        return values.cast[DType.float32]()


@always_inline
def are_finite[size: Int](values: SIMD[DType.float32, size]) -> Bool:
    """Whether none is infinite or NaN: their exponents have all bits set."""
    comptime exponent = SIMD[DType.uint32, size](0x7F800000)
    return not (bitcast[DType.uint32, size](values) & exponent).eq(exponent).reduce_or()


@always_inline
def largest[size: Int](values: SIMD[DType.float32, size]) -> Float32:
    """The value of largest magnitude, with its sign; of several the first."""
    var magnitudes = abs(values)
    var found = magnitudes.eq(magnitudes.reduce_max())
    comptime for i in range(size):
        if found[i]:
            return values[i]
    return 0


@always_inline
def load_groups[
    dtype: DType, groups: Int, size: Int
](source: Pointer[Scalar[dtype], _]) -> Array[SIMD[DType.float32, groups], size]:
    """Groups of `size` values, transposed: the i-th vector has the i-th value of each group."""
    var columns = Array[SIMD[DType.float32, groups], size](fill=SIMD[DType.float32, groups](0))
    comptime for start in range(0, size, groups):
        var square = Array[SIMD[DType.float32, groups], groups](fill=SIMD[DType.float32, groups](0))
        comptime for group in range(groups):
            square[group] = load_values[groups](source, group * size + start)
        transpose(square)
        comptime for i in range(groups):
            columns[start + i] = square[i]
    return columns^


@always_inline
def transpose[size: Int](mut square: Array[SIMD[DType.float32, size], size]):
    """Each round of interleaving moves the highest bit of the row's number to the lowest of the column's."""
    comptime for _ in range(log2_floor(size)):
        var next = Array[SIMD[DType.float32, size], size](fill=SIMD[DType.float32, size](0))
        comptime for i in range(size // 2):
            var both = square[i].interleave(square[i + size // 2])
            next[2 * i] = both.slice[size, offset=0]()
            next[2 * i + 1] = both.slice[size, offset=size]()
        square = next^
