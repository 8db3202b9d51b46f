"""q6_k: blocks of 256 weights in 16 groups, whose scales are quantized too.

The scale of each group is searched: the quants that several trial scales give are each fitted by least squares,
weighted by the squares of the weights, and the best fit is kept. All groups of a block are searched at once, one to a
lane.
Source: ggml's quantize_row_q6_K_ref with make_qx_quants; unlike there, the neighbours of the nearest quantized scales
are tried too.
"""

from std.math import round
from std.memory import bitcast

from blocks import Bytes, store_factor
from values import largest, load_groups, load_values

comptime GROUPS = 16
comptime SIZE = 16
"""Weights of a group."""
comptime Lanes = SIMD[DType.float32, GROUPS]
comptime Columns = Array[Lanes, SIZE]
comptime LEVELS = Float32(32)
comptime MAX_SCALE = Float32(128)
comptime TRIALS = 19
comptime SMALLEST = Float32(1e-15)
"""Groups of smaller weights are zero."""


@always_inline
def write_q6_k[dtype: DType](target: Bytes, source: Pointer[Scalar[dtype], _]) -> Bool:
    """Writes the lower 4 bits of all weights, their upper 2, the scales, then the factor of scales.

    Returns whether the factor fits into float16.
    """
    var x = load_groups[dtype, GROUPS, SIZE](source)
    var scales = fit(x)
    var factor = largest[GROUPS](scales) / -MAX_SCALE
    if not store_factor(target.unsafe_offset(208), factor):
        return False
    var chosen = quantize_scales(x, scales, factor)
    target.unsafe_offset(192).unsafe_store(bitcast[DType.uint8, GROUPS](chosen.cast[DType.int8]()))
    comptime for half in range(2):
        var quants = Array[SIMD[DType.uint8, 2 * SIZE], 4](fill=SIMD[DType.uint8, 2 * SIZE](0))
        comptime for i in range(4):
            comptime group = half * 8 + i * 2
            var first = quants_of(source, group, chosen[group] * factor)
            quants[i] = first.join(quants_of(source, group + 1, chosen[group + 1] * factor))
        store_quants[half](target, quants)
    return True


@always_inline
def fit(x: Columns) -> Lanes:
    """The scales that fit best."""
    var magnitude = Lanes(0)
    var extreme = Lanes(0)
    comptime for i in range(SIZE):
        var is_larger = abs(x[i]).gt(magnitude)
        magnitude = is_larger.select(abs(x[i]), magnitude)
        extreme = is_larger.select(x[i], extreme)
    var is_zero = magnitude.lt(SMALLEST)
    extreme = is_zero.select(Lanes(1), extreme)
    var unit = 1 / extreme / extreme  # of the weights, so that no sum overflows
    var scale = Lanes(0)
    var best = Lanes(Float32.MAX)
    for trial in range(TRIALS):
        var inverse = (0.1 * Float32(TRIALS // 2 - trial) - LEVELS) / extreme
        var sum_xl = Lanes(0)
        var sum_ll = Lanes(0)
        comptime for i in range(SIZE):
            var l = quantize(x[i], inverse)
            var wl = x[i] * x[i] * unit * l
            sum_xl += wl * x[i]
            sum_ll += wl * l
        var new_scale = sum_xl / sum_ll
        # Not by the sums, as ggml has it: where one large weight makes up nearly all of them, their rounding decides.
        var error = Lanes(0)
        comptime for i in range(SIZE):
            var difference = new_scale * quantize(x[i], inverse) - x[i]
            error += x[i] * x[i] * unit * difference * difference
        var is_better = error.lt(best)
        scale = is_better.select(new_scale, scale)
        best = is_better.select(error, best)
    return is_zero.select(Lanes(0), scale)


@always_inline
def quantize(x: Lanes, inverse: Lanes) -> Lanes:
    return round((x * inverse).clamp(-LEVELS, LEVELS - 1))


@always_inline
def inverse_or_0(scale: Lanes) -> Lanes:
    return scale.eq(0).select(Lanes(0), 1 / scale)


@always_inline
def quantize_scales(x: Columns, scales: Lanes, factor: Float32) -> Lanes:
    """The quantized scales, of those next to what was fitted, with the smallest error."""
    var center = round(scales * inverse_or_0(Lanes(factor)))
    var best = Lanes(Float32.MAX)
    var chosen = Lanes(0)
    for trial in range(-1, 2):
        var s = (center + Float32(trial)).clamp(-MAX_SCALE, MAX_SCALE - 1)
        var scale = s * factor
        var inverse = inverse_or_0(scale)
        var error = Lanes(0)
        comptime for i in range(SIZE):
            var difference = scale * quantize(x[i], inverse) - x[i]
            error += x[i] * x[i] * difference * difference
        var is_better = error.lt(best)
        best = is_better.select(error, best)
        chosen = is_better.select(s, chosen)
    return chosen


@always_inline
def quants_of[
    dtype: DType
](source: Pointer[Scalar[dtype], _], group: Int, scale: Float32) -> SIMD[DType.uint8, SIZE]:
    """Quants of a group, plus 32."""
    var x = load_values[SIZE](source, group * SIZE)
    return (quantize(x, inverse_or_0(Lanes(scale))) + LEVELS).cast[DType.uint8]()


@always_inline
def store_quants[half: Int](target: Bytes, quants: Array[SIMD[DType.uint8, 2 * SIZE], 4]):
    """Stores those of half a block: the lower bits of two to a byte, the upper bits of four to a byte."""
    var lower = target.unsafe_offset(half * 64)
    lower.unsafe_store((quants[0] & 15) | (quants[2] << 4))
    lower.unsafe_offset(32).unsafe_store((quants[1] & 15) | (quants[3] << 4))
    var bits = quants[0] >> 4
    comptime for i in range(1, 4):
        bits |= (quants[i] >> 4) << UInt8(2 * i)
    target.unsafe_offset(128 + half * 32).unsafe_store(bits)
