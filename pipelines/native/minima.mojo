"""q4_k and q5_k: blocks of 256 weights in 8 groups, whose scales and minima are quantized too.

The scale and the minimum of each group are searched: the quants that several trial scales give are each fitted by least
squares, weighted so that large weights count more, and the best fit is kept. All groups of a block are searched at
once, one to a lane. Source: ggml's quantize_row_q4_K_ref and quantize_row_q5_K_ref with make_qkx2_quants; unlike there,
the neighbours of the nearest quantized scales and minima are tried too.
"""

from std.math import round, sqrt

from blocks import Bytes, store_factor
from values import load_groups, load_values

comptime GROUPS = 8
comptime SIZE = 32
"""Weights of a group."""
comptime Lanes = SIMD[DType.float32, GROUPS]
comptime Columns = Array[Lanes, SIZE]
comptime MAX_SCALE = Float32(63)


trait Bits:
    """The bits of a weight. MAX_QUANT: the greatest quant. A search tries scales for which the range has so many steps:
    TRIALS numbers, FIRST and each 0.1 more.
    """

    comptime MAX_QUANT: Float32
    comptime FIRST: Float32
    comptime TRIALS: Int


struct FourBits(Bits):
    comptime MAX_QUANT = Float32(15)
    comptime FIRST = Float32(14)
    comptime TRIALS = 21


struct FiveBits(Bits):
    comptime MAX_QUANT = Float32(31)
    comptime FIRST = Float32(30.5)
    comptime TRIALS = 16


@always_inline
def write_q4_k[dtype: DType](target: Bytes, source: Pointer[Scalar[dtype], _]) -> Bool:
    """Writes the factors of scales and of minima, 12 bytes of scales and minima, then 4 bits a weight.

    Returns whether the factors fit into float16.
    """
    var found = write_scales[FourBits](target, source)
    if not found:
        return False
    comptime for group in range(0, GROUPS, 2):
        var low = quants[FourBits](source, group, found.value())
        var high = quants[FourBits](source, group + 1, found.value())
        target.unsafe_offset(16 + group * SIZE // 2).unsafe_store(low | (high << 4))
    return True


@always_inline
def write_q5_k[dtype: DType](target: Bytes, source: Pointer[Scalar[dtype], _]) -> Bool:
    """Writes as `write_q4_k`, but between the scales and the 4 bits 32 bytes of fifth bits, one of each for a group."""
    var found = write_scales[FiveBits](target, source)
    if not found:
        return False
    var fifth = SIMD[DType.uint8, SIZE](0)
    comptime for group in range(0, GROUPS, 2):
        var low = quants[FiveBits](source, group, found.value())
        var high = quants[FiveBits](source, group + 1, found.value())
        target.unsafe_offset(48 + group * SIZE // 2).unsafe_store((low & 15) | (high << 4))
        fifth |= ((low >> 4) << UInt8(group)) | ((high >> 4) << UInt8(group + 1))
    target.unsafe_offset(16).unsafe_store(fifth)
    return True


@always_inline
def write_scales[
    B: Bits, dtype: DType
](target: Bytes, source: Pointer[Scalar[dtype], _]) -> Optional[Tuple[Lanes, Lanes]]:
    """Writes the factors, the scales and the minima, and returns the groups' scales and minima as they are stored.

    Nothing, if a factor does not fit into float16.
    """
    var x = load_groups[dtype, GROUPS, SIZE](source)
    var w = weights(x)
    var fitted = fit[B](x, w)
    var scale = fitted[0].reduce_max() / MAX_SCALE
    var minimum = fitted[1].reduce_max() / MAX_SCALE
    var has_scale = store_factor(target, scale)
    var has_minimum = store_factor(target.unsafe_offset(2), minimum)
    if not (has_scale and has_minimum):
        return None
    var chosen = quantize_scales[B](x, w, fitted, scale, minimum)
    store_scales(target.unsafe_offset(4), chosen[0].cast[DType.uint8](), chosen[1].cast[DType.uint8]())
    return (chosen[0] * scale, chosen[1] * minimum)


@always_inline
def weights(x: Columns) -> Columns:
    """A weight counts by its magnitude, and by the group's root mean square."""
    var squares = Lanes(0)
    comptime for i in range(SIZE):
        squares += x[i] * x[i]
    var mean = sqrt(squares / SIZE)
    var w = Columns(fill=mean)
    comptime for i in range(SIZE):
        w[i] += abs(x[i])
    return w^


@always_inline
def fit[B: Bits](x: Columns, w: Columns) -> Tuple[Lanes, Lanes]:
    """The scales and minima that fit best; minima are positive, and subtracted."""
    var lowest = x[0]
    var highest = x[0]
    var sum_w = Lanes(0)
    var sum_x = Lanes(0)
    comptime for i in range(SIZE):
        lowest = min(lowest, x[i])
        highest = max(highest, x[i])
        sum_w += w[i]
        sum_x += w[i] * x[i]
    lowest = min(lowest, 0)
    var is_flat = highest.eq(lowest)
    var scale = (highest - lowest) / B.MAX_QUANT
    var best = weighted_error(x, w, trial_quants[B](x, lowest, scale), scale, lowest)
    for trial in range(B.TRIALS):
        var l = trial_quants[B](x, lowest, (highest - lowest) / (B.FIRST + 0.1 * Float32(trial)))
        var new = least_squares(x, w, l, sum_w, sum_x)
        var error = weighted_error(x, w, l, new[0], new[1])
        var is_better = error.lt(best)
        scale = is_better.select(new[0], scale)
        lowest = is_better.select(new[1], lowest)
        best = is_better.select(error, best)
    return (is_flat.select(Lanes(0), scale), -lowest)


@always_inline
def least_squares(x: Columns, w: Columns, l: Columns, sum_w: Lanes, sum_x: Lanes) -> Tuple[Lanes, Lanes]:
    """The scales and minima that fit these quants best; no finite numbers where the quants tell none."""
    var sum_l = Lanes(0)
    var sum_ll = Lanes(0)
    var sum_xl = Lanes(0)
    comptime for i in range(SIZE):
        var wl = w[i] * l[i]
        sum_l += wl
        sum_ll += wl * l[i]
        sum_xl += wl * x[i]
    var determinant = max(sum_w * sum_ll - sum_l * sum_l, 0)
    var scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    var lowest = (sum_ll * sum_x - sum_l * sum_xl) / determinant
    var is_positive = lowest.gt(0)  # the format only subtracts minima
    return (is_positive.select(sum_xl / sum_ll, scale), is_positive.select(Lanes(0), lowest))


@always_inline
def trial_quants[B: Bits](x: Columns, lowest: Lanes, scale: Lanes) -> Columns:
    """Quants, in float32; 0 where the scale is 0."""
    var inverse = scale.gt(0).select(1 / scale, Lanes(0))
    var l = Columns(fill=Lanes(0))
    comptime for i in range(SIZE):
        l[i] = round(((x[i] - lowest) * inverse).clamp(0, B.MAX_QUANT))
    return l^


@always_inline
def weighted_error(x: Columns, w: Columns, l: Columns, scale: Lanes, lowest: Lanes) -> Lanes:
    """The sums of squared differences of the weights from quants * scale + lowest."""
    var error = Lanes(0)
    comptime for i in range(SIZE):
        var difference = scale * l[i] + lowest - x[i]
        error += w[i] * difference * difference
    return error


@always_inline
def quantize_scales[
    B: Bits
](
    x: Columns, w: Columns, fitted: Tuple[Lanes, Lanes], scale: Float32, minimum: Float32
) -> Tuple[Lanes, Lanes]:
    """The quantized scales and minima, of those next to what was fitted, with the smallest error."""
    var center_scale = round(fitted[0] / scale) if scale > 0 else Lanes(0)
    var center_minimum = round(fitted[1] / minimum) if minimum > 0 else Lanes(0)
    var best = Lanes(Float32.MAX)
    var best_scale = Lanes(0)
    var best_minimum = Lanes(0)
    for trial in range(9):
        var s = (center_scale + Float32(trial % 3 - 1)).clamp(0, MAX_SCALE)
        var m = (center_minimum + Float32(trial // 3 - 1)).clamp(0, MAX_SCALE)
        var error = weighted_error(x, w, trial_quants[B](x, -m * minimum, s * scale), s * scale, -m * minimum)
        var is_better = error.lt(best)
        best = is_better.select(error, best)
        best_scale = is_better.select(s, best_scale)
        best_minimum = is_better.select(m, best_minimum)
    return (best_scale, best_minimum)


@always_inline
def store_scales(target: Bytes, s: SIMD[DType.uint8, GROUPS], m: SIMD[DType.uint8, GROUPS]):
    """6 bits each: those of the first four groups, with the upper bits of the last four above them."""
    comptime for i in range(4):
        target.unsafe_offset(i).unsafe_store(s[i] | ((s[i + 4] >> 4) << 6))
        target.unsafe_offset(i + 4).unsafe_store(m[i] | ((m[i + 4] >> 4) << 6))
        target.unsafe_offset(i + 8).unsafe_store((s[i + 4] & 15) | (m[i + 4] << 4))


@always_inline
def quants[
    B: Bits, dtype: DType
](source: Pointer[Scalar[dtype], _], group: Int, scales: Tuple[Lanes, Lanes]) -> SIMD[DType.uint8, SIZE]:
    """The quants of a group, with the scales and minima of all."""
    var scale = scales[0][group]
    var minimum = scales[1][group]
    var inverse = 1 / scale if scale > 0 else Float32(0)
    var x = load_values[SIZE](source, group * SIZE)
    return round(((x + minimum) * inverse).clamp(0, B.MAX_QUANT)).cast[DType.uint8]()


