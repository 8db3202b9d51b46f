"""Weights of tokens: e ** ((logit - peak) / temperature), from 0 to 1."""

from std.memory import bitcast
from std.utils.numerics import nan, neg_inf

from selection import Doubles, Floats, LANES, Values, load

comptime BLOCK = 1024
"""Values whose sum or peak is kept: one of them leads to a single value in few steps."""
comptime LOG2E = Float32(1.4426950408889634)
comptime LN2 = Float32(0.693145751953125)
"""In a few bits, so that its multiples are exact."""
comptime LN2_REST = Float32(1.42860682030941723212e-6)
comptime ROUNDING = Float32(12582912)
"""1.5 * 2 ** 23: adding it leaves a whole number in the lowest bits."""
comptime INFINITY_BITS = Int32(0x7F800000)
"""Those of NaN are above it, without the sign."""
comptime SMALLEST = Float32(-87)
"""The weight of all under it is 0: that of the next would soon have less than 24 bits."""


def find_peaks(logits: Pointer[Float32, _], n: Int, peaks: Values) -> Float32:
    """Finds the largest value of each block and returns that of all; NaN if any value is."""
    var peak = Floats(neg_inf[DType.float32]())
    var magnitudes = SIMD[DType.int32, LANES](0)
    for start in range(0, n, BLOCK):
        var highest = Floats(neg_inf[DType.float32]())
        for i in range(start, min(start + BLOCK, n), LANES):
            var x = load(logits, i, n)
            highest = x.gt(highest).select(x, highest)
            magnitudes = max(magnitudes, bitcast[DType.int32, LANES](x) & 0x7FFFFFFF)
        peaks.unsafe_offset(start // BLOCK).unsafe_store(highest.reduce_max())
        peak = max(peak, highest)
    return peak.reduce_max() if magnitudes.reduce_max() <= INFINITY_BITS else nan[DType.float32]()


def weigh[
    stores: Bool
](
    weights: Values,
    sums: Pointer[mut=True, Float64, _],
    logits: Pointer[Float32, _],
    n: Int,
    peak: Float32,
    temperature: Float32,
) -> Float64:
    """Stores the weights, padded by zeros to whole vectors, and the sum of each block; returns the sum of all."""
    var total = Float64(0)
    var inverse = Floats(1 / temperature)
    for start in range(0, n, BLOCK):
        var sum = Doubles(0)
        for i in range(start, min(start + BLOCK, n), LANES):
            var x = exponential(quotient(load(logits, i, n) - peak, temperature, inverse))
            sum += x.cast[DType.float64]()
            comptime if stores:
                weights.unsafe_offset(i).unsafe_store(x)
        sums.unsafe_offset(start // BLOCK).unsafe_store(sum.reduce_add())
        total += sum.reduce_add()
    return total


@always_inline
def quotient(x: Floats, divisor: Float32, inverse: Floats) -> Floats:
    """X / divisor as a division rounds it, from the rounded inverse (P. Markstein); faster than a division."""
    var estimate = x * inverse
    var corrected = estimate.fma(Floats(-divisor), x).fma(inverse, estimate)
    return estimate.lt(Floats(SMALLEST)).select(estimate, corrected)  # where it may be infinite


@always_inline
def exponential(x: Floats) -> Floats:
    """Powers of e of values from minus infinity to 0, at most 1 unit in the last place off; 0 under SMALLEST.

    Of the nearest power of two, and a polynomial for what is left: its largest error is as small as it can be.
    """
    var rounded = x.fma(Floats(LOG2E), Floats(ROUNDING))
    var power = rounded - ROUNDING
    var rest = power.fma(Floats(-LN2_REST), power.fma(Floats(-LN2), x))
    var sum = rest.fma(Floats(0.0013814597623422742), Floats(0.008368716575205326))
    sum = rest.fma(sum, Floats(0.04166838899254799))
    sum = rest.fma(sum, Floats(0.1666652113199234))
    sum = rest.fma(sum, Floats(0.4999999403953552))
    sum = (rest * rest).fma(sum, rest) + 1
    var bits = bitcast[DType.int32, LANES](sum) + (bitcast[DType.int32, LANES](rounded) << 23)
    return x.lt(Floats(SMALLEST)).select(Floats(0), bitcast[DType.float32, LANES](bits))
