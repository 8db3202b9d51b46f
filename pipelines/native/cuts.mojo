"""Cuts of a row of logits: top-k, top-p and min-p, and the draw from what they leave.

A sample of a long row says about where a cut must lie. One pass takes out the values that are near; the cut is found
among them, exactly. Should the sample have misled, the pass is repeated on the side where the cut lies.
"""

from std.math import ceildiv, iota, sqrt

from selection import LANES, LOWEST, Cut, Doubles, Floats, Values, append, largest, largest_of, load
from softmax import BLOCK

comptime SAMPLE = 1024
comptime ERRORS = 4.0
"""Standard errors of a sample's estimate that are reckoned with."""
comptime TINY = Float32(1.17549435e-38)
"""Under all weights but 0."""


struct Scratch(Movable):
    """Memory for the work on one row of up to `n` values."""

    var weights: List[Float32]
    var near: List[Float32]
    var copy: List[Float32]
    var ids: List[Int32]
    var peaks: List[Float32]
    var starts: List[Int]
    var equals: List[Int]
    var sums: List[Float64]

    def __init__(out self, n: Int):
        var blocks = ceildiv(n, BLOCK)
        self.weights = List[Float32](unsafe_uninit_length=n + LANES)
        self.near = List[Float32](unsafe_uninit_length=n + LANES)
        self.copy = List[Float32](unsafe_uninit_length=n + LANES)
        self.ids = List[Int32](unsafe_uninit_length=n + LANES)
        self.peaks = List[Float32](length=blocks, fill=0)
        self.starts = List[Int](length=blocks + 1, fill=0)
        self.equals = List[Int](length=blocks, fill=0)
        self.sums = List[Float64](length=blocks, fill=0)


def take_sample(sample: Values, values: Pointer[Float32, _], n: Int):
    """One value from each of SAMPLE equal parts, at places that follow no pattern of the ids."""
    var part = n // SAMPLE
    var place = UInt32(0)
    for i in range(SAMPLE):
        place = place * 1664525 + 1013904223
        sample.unsafe_offset(i).unsafe_store(values.unsafe_offset(i * part + Int(place >> 8) % part).unsafe_load())


def collect_top(logits: Pointer[Float32, _], n: Int, k: Int, peak: Float32, mut scratch: Scratch) -> Int:
    """Collects the k largest logits, all that equal the k-th, in `near`, and their ids; returns how many they are.

    Logits of minus infinity are none of them.
    """
    var lowest = likely_floor(logits, n, k, peak, scratch.copy.unsafe_ptr())
    var count = collect(logits, n, lowest, scratch)
    if count < k and lowest > LOWEST:
        lowest = LOWEST
        count = collect(logits, n, lowest, scratch)
    var near = scratch.near.unsafe_ptr()
    var cut = largest_of[False](scratch.copy.unsafe_ptr(), near, count, Float64(k), lowest, peak)
    return filter(near, scratch.ids.unsafe_ptr(), count, cut.value) if cut.value > lowest else count


def likely_floor(logits: Pointer[Float32, _], n: Int, k: Int, peak: Float32, sample: Values) -> Float32:
    """A value that the k-th largest is hardly below, and that not many more than k reach."""
    var expected = Float64(k) * SAMPLE / Float64(n)
    var place = expected + ERRORS * sqrt(expected) + ERRORS
    if n < 4 * SAMPLE or place > SAMPLE:
        return LOWEST
    take_sample(sample, logits, n)
    return largest[False](sample, SAMPLE, place, LOWEST, peak).value


def collect(logits: Pointer[Float32, _], n: Int, lowest: Float32, mut scratch: Scratch) -> Int:
    """Collects the logits that are not below `lowest`, from blocks that have any."""
    var near = scratch.near.unsafe_ptr()
    var ids = scratch.ids.unsafe_ptr()
    var count = 0
    for start in range(0, n, BLOCK):
        if scratch.peaks[start // BLOCK] < lowest:
            continue
        for i in range(start, min(start + BLOCK, n), LANES):
            var x = load(logits, i, n)
            var is_top = x.ge(Floats(lowest))
            if is_top.reduce_or():
                _ = append(ids, count, iota[DType.int32, LANES](Int32(i)), is_top)
                count = append(near, count, x, is_top)
    return count


def filter(values: Values, ids: Pointer[mut=True, Int32, _], count: Int, lowest: Float32) -> Int:
    """Keeps the values that are not below `lowest`, and their ids."""
    var kept = 0
    for i in range(0, count, LANES):
        var x = load(values, i, count)
        var is_top = x.ge(Floats(lowest))
        _ = append(ids, kept, ids.unsafe_offset(i).unsafe_load[width=LANES](), is_top)
        kept = append(values, kept, x, is_top)
    return kept


def top_p_cut(n: Int, total: Float64, top_p: Float64, mut scratch: Scratch) -> Cut:
    """The cut of n weights at the smallest set that reaches its share of the total; leaves `narrow`'s results."""
    var target = top_p * total
    # Those below the bound have less than 1 - top_p together. The rounding of a float32 may not raise it.
    var floor = max(TINY, Float32((1 - top_p) * total / Float64(n) * (1 - 1e-6)))
    var low = floor
    var high = Float32(1)
    if n >= 4 * SAMPLE:
        low, high = likely_range(n, total - target, floor, scratch)
    var above: Float64
    var near: Float64
    above, near = narrow(n, low, high, scratch)
    if above >= target:
        low, high = high, Float32(1)
    elif above + near < target and low > floor:
        low, high = floor, low
    else:
        return find_cut(target - above, low, high, n, scratch)
    above, _ = narrow(n, low, high, scratch)
    return find_cut(target - above, low, high, n, scratch)


def find_cut(missing: Float64, low: Float32, high: Float32, n: Int, mut scratch: Scratch) -> Cut:
    """The cut among the weights that are near."""
    var count = scratch.starts[ceildiv(n, BLOCK)]
    return largest_of[True](scratch.copy.unsafe_ptr(), scratch.near.unsafe_ptr(), count, missing, low, high)


def likely_range(n: Int, rest: Float64, floor: Float32, mut scratch: Scratch) -> Tuple[Float32, Float32]:
    """A range in which a cut lies that leaves `rest` below it: what a sample's light weights say, with their error."""
    var sample = scratch.near.unsafe_ptr()
    var copy = scratch.copy.unsafe_ptr()
    take_sample(sample, scratch.weights.unsafe_ptr(), n)
    var share = rest * SAMPLE / Float64(n)
    var total = sum_to(sample, 1)[0]
    var sum: Float64
    var squares: Float64
    sum, squares = sum_to(sample, cut_sample(copy, sample, total - share))
    var error = ERRORS * sqrt(squares) / sum if sum > 0 else 1
    var low = cut_sample(copy, sample, total - share * (1 - error)) if error < 1 else floor
    var high = cut_sample(copy, sample, total - share * (1 + error))
    return max(low, floor), max(high, floor)


def cut_sample(copy: Values, sample: Values, target: Float64) -> Float32:
    """The weight at which the sample's largest reach the target; 1 if there is none to reach."""
    return largest_of[True](copy, sample, SAMPLE, target, 0, 1).value if target > 0 else 1


def sum_to(sample: Values, highest: Float32) -> Tuple[Float64, Float64]:
    """The sums of the sample's weights up to `highest`, and of their squares."""
    var sums = Doubles(0)
    var squares = Doubles(0)
    for i in range(0, SAMPLE, LANES):
        var x = load(sample, i, SAMPLE)
        var light = x.le(Floats(highest)).select(x, Floats(0)).cast[DType.float64]()
        sums += light
        squares = light.fma(light, squares)
    return sums.reduce_add(), squares.reduce_add()


def narrow(n: Int, low: Float32, high: Float32, mut scratch: Scratch) -> Tuple[Float64, Float64]:
    """Takes out the weights from low to high, block after block, and sums those above in each; returns both sums."""
    var weights = scratch.weights.unsafe_ptr()
    var near = scratch.near.unsafe_ptr()
    var count = 0
    var total_above = Float64(0)
    for start in range(0, n, BLOCK):
        scratch.starts[start // BLOCK] = count
        var sum = Doubles(0)
        for i in range(start, min(start + BLOCK, n), LANES):
            var x = weights.unsafe_offset(i).unsafe_load[width=LANES]()
            var is_above = x.gt(Floats(high))
            sum += is_above.select(x, Floats(0)).cast[DType.float64]()
            count = append(near, count, x, x.ge(Floats(low)) & ~is_above)
        scratch.sums[start // BLOCK] = sum.reduce_add()
        total_above += sum.reduce_add()
    scratch.starts[ceildiv(n, BLOCK)] = count
    var sum = Doubles(0)
    for i in range(0, count, LANES):
        var x = load(near, i, count)
        sum += x.ge(Floats(low)).select(x, Floats(0)).cast[DType.float64]()
    return total_above, sum.reduce_add()


def rank_top(
    top: Pointer[mut=True, Int64, _],
    logits: Pointer[Float32, _],
    n: Int,
    num_top: Int,
    peak: Float32,
    mut scratch: Scratch,
):
    """Stores the ids of the num_top <= n largest logits, largest first, and among equals lowest first."""
    var count = collect_top(logits, n, num_top, peak, scratch)
    var near = scratch.near.unsafe_ptr()
    var ranked = 0
    for start in range(0, count, LANES):
        if ranked == num_top and not load(near, start, count).gt(Floats(scratch.copy[ranked - 1])).reduce_or():
            continue
        for i in range(start, min(start + LANES, count)):
            if ranked == num_top and scratch.near[i] <= scratch.copy[ranked - 1]:
                continue
            ranked = min(ranked + 1, num_top)
            insert(top, scratch.copy.unsafe_ptr(), ranked, scratch.near[i], scratch.ids[i])
    var id = 0
    while ranked < num_top:  # those that are left are minus infinity
        if logits.unsafe_offset(id).unsafe_load() < LOWEST:
            top.unsafe_offset(ranked).unsafe_store(Int64(id))
            ranked += 1
        id += 1


def insert(top: Pointer[mut=True, Int64, _], values: Values, count: Int, value: Float32, id: Int32):
    """Inserts a value behind those that are not smaller, and its id; they are `count` then."""
    var place = count - 1
    while place > 0 and values.unsafe_offset(place - 1).unsafe_load() < value:
        values.unsafe_offset(place).unsafe_store(values.unsafe_offset(place - 1).unsafe_load())
        top.unsafe_offset(place).unsafe_store(top.unsafe_offset(place - 1).unsafe_load())
        place -= 1
    values.unsafe_offset(place).unsafe_store(value)
    top.unsafe_offset(place).unsafe_store(Int64(id))
