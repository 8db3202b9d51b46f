"""The largest of many float32 values, found without sorting them: so many, or until their sum reaches a target."""

from std.memory import bitcast
from std.sys.intrinsics import llvm_intrinsic
from std.utils.numerics import neg_inf

comptime LANES = 16
"""Of every sum, on every CPU: so their order, and each bit of a result, is the same everywhere."""
comptime Floats = SIMD[DType.float32, LANES]
comptime Doubles = SIMD[DType.float64, LANES]
comptime Mask = SIMD[DType.bool, LANES]
comptime Values = Pointer[mut=True, Float32, _]
comptime LOWEST = Float32.MIN_FINITE
comptime SUBNORMAL_BITS = 0x7FFFFF


@fieldwise_init
struct Cut(ImplicitlyCopyable, Movable):
    """The values above `value` are kept, and the first `num_equal` of those that equal it."""

    var value: Float32
    var num_equal: Int


@always_inline
def load(source: Pointer[Float32, _], i: Int, n: Int) -> Floats:
    """Values i to i + LANES, with minus infinity from n on."""
    if i + LANES <= n:
        return source.unsafe_offset(i).unsafe_load[width=LANES]()
    var values = Floats(neg_inf[DType.float32]())
    for j in range(i, n):
        values[j - i] = source.unsafe_offset(j).unsafe_load()
    return values


@always_inline
def append[
    dtype: DType
](target: Pointer[mut=True, Scalar[dtype], _], count: Int, values: SIMD[dtype, LANES], is_kept: Mask) -> Int:
    """Adds the marked values to `count` others and returns how many there are; up to LANES behind them are changed."""
    comptime name = "llvm.experimental.vector.compress"
    target.unsafe_offset(count).unsafe_store(llvm_intrinsic[name, type_of(values)](values, is_kept, values))
    return count + num_marked(is_kept)


@always_inline
def num_marked(mask: Mask) -> Int:
    return Int(mask.cast[DType.int32]().reduce_add())


def largest[by_sum: Bool](values: Values, count: Int, target: Float64, lowest: Float32, highest: Float32) -> Cut:
    """Cuts `count` values from `lowest` to `highest`, which are lost, where so many, or their sum, reach the target.

    All that reach it are kept if not even all do. By halves of the range of their bits: 32 rounds at most, each of
    which looks at those that are left.
    """
    var n = count
    var low = ordered(lowest)
    var high = ordered(highest)
    var missing = target
    while low < high:
        var middle = low + ((high - low) >> 1)
        var pivot = value_of(middle)
        var upper = amount_above[by_sum](values, n, pivot)
        if upper >= missing:
            n = keep[True](values, n, pivot)
            low = middle + 1
        else:
            missing -= upper
            n = keep[False](values, n, pivot)
            high = middle
    return Cut(value_of(low), num_needed(missing, value_of(low).cast[DType.float64]() if by_sum else 1, n))


def largest_of[
    by_sum: Bool
](copy: Values, values: Values, count: Int, target: Float64, lowest: Float32, highest: Float32) -> Cut:
    """Cuts as `largest`, and leaves the values as they are."""
    if lowest < highest:
        for i in range(0, count, LANES):
            copy.unsafe_offset(i).unsafe_store(load(values, i, count))
    return largest[by_sum](copy, count, target, lowest, highest)


def num_needed(missing: Float64, value: Float64, count: Int) -> Int:
    """The smallest number of equal values that reach what is missing, 1 to count; its product is exact."""
    var needed = max(1, min(count, Int(missing / value))) if value > 0 else count
    while needed < count and value * Float64(needed) < missing:
        needed += 1
    while needed > 1 and value * Float64(needed - 1) >= missing:
        needed -= 1
    return needed


@always_inline
def ordered(value: Float32) -> Int:
    """An integer that orders values as they are. Those below the normal ones are 0, as they are on MAX's threads."""
    var magnitude = max(0, Int(bitcast[DType.int32](abs(value))) - SUBNORMAL_BITS)
    return -magnitude if value < 0 else magnitude


@always_inline
def value_of(integer: Int) -> Float32:
    if integer == 0:
        return 0
    var value = bitcast[DType.float32](Int32(abs(integer) + SUBNORMAL_BITS))
    return -value if integer < 0 else value


def amount_above[by_sum: Bool](values: Values, count: Int, pivot: Float32) -> Float64:
    """The sum, or the number, of the values above the pivot."""
    var sums = Doubles(0)
    var number = 0
    for i in range(0, count, LANES):
        var x = load(values, i, count)
        var is_above = x.gt(Floats(pivot))
        comptime if by_sum:
            sums += is_above.select(x, Floats(0)).cast[DType.float64]()
        else:
            number += num_marked(is_above)
    return sums.reduce_add() if by_sum else Float64(number)


def keep[above: Bool](values: Values, count: Int, pivot: Float32) -> Int:
    """Keeps the values above the pivot, or the others, in their order; returns how many they are."""
    var kept = 0
    for i in range(0, count, LANES):
        var x = load(values, i, count)
        comptime if above:
            kept = append(values, kept, x, x.gt(Floats(pivot)))
        else:
            # Minus infinity fills the last vector, and is never one of the values.
            kept = append(values, kept, x, x.le(Floats(pivot)) & x.ge(Floats(LOWEST)))
    return kept
