"""Choice of tokens from rows of logits, on all cores; a row's result depends on nothing but the row."""

from max.algorithm import parallelize
from std.atomic import Atomic
from std.math import ceildiv, isfinite
from std.sys.info import num_physical_cores

from cuts import Scratch, collect_top, narrow, rank_top, top_p_cut
from selection import LANES, Cut, Doubles, Floats, Values, load, num_marked
from softmax import BLOCK, exponential, find_peaks, weigh

comptime Floats32 = Pointer[mut=True, Float32, MutAnyOrigin]
comptime Floats64 = Pointer[mut=True, Float64, MutAnyOrigin]
comptime Integers = Pointer[mut=True, Int64, MutAnyOrigin]
comptime Row = Pointer[mut=False, Float32, ImmutAnyOrigin]


@fieldwise_init
struct Cuts(ImplicitlyCopyable, Movable):
    """Of one row. temperature: 0 for the likeliest token. uniform: the random number, in [0, 1)."""

    var temperature: Float32
    var top_k: Int
    var top_p: Float64
    var min_p: Float32
    var uniform: Float64


@export("sample_rows")
def sample_rows(
    tokens: Integers,
    rows: Integers,
    num_rows: Int,
    vocab_size: Int,
    temperatures: Floats32,
    top_k: Integers,
    top_p: Floats64,
    min_p: Floats32,
    uniforms: Floats64,
) abi("C"):
    """Chooses a token from each row of logits, by their addresses; -1 if the row has no finite largest logit."""
    var next_row = Int64(0)
    var counter = Pointer(to=next_row)

    def work(_core: Int) {imm}:
        var scratch = Scratch(vocab_size)
        var i = Int(Atomic[Int64].fetch_add(counter, 1))
        while i < num_rows:
            var cuts = Cuts(
                temperatures.unsafe_offset(i).unsafe_load(),
                Int(top_k.unsafe_offset(i).unsafe_load()),
                top_p.unsafe_offset(i).unsafe_load(),
                min_p.unsafe_offset(i).unsafe_load(),
                uniforms.unsafe_offset(i).unsafe_load(),
            )
            var row = Row(unsafe_from_address=Int(rows.unsafe_offset(i).unsafe_load()))
            tokens.unsafe_offset(i).unsafe_store(Int64(sample_row(row, vocab_size, cuts, scratch)))
            i = Int(Atomic[Int64].fetch_add(counter, 1))

    parallelize(work, min(num_rows, num_physical_cores()))
    _ = next_row


@export("log_softmax_rows")
def log_softmax_rows(
    peaks: Floats32,
    sums: Floats64,
    top: Integers,
    rows: Integers,
    num_rows: Int,
    vocab_size: Int,
    num_top: Integers,
    top_stride: Int,
) abi("C"):
    """For each row of logits the largest, the sum of e ** (logit - largest), and the ids of the largest, in order.

    A row without a finite largest logit has no sum and no ids.
    """
    var next_row = Int64(0)
    var counter = Pointer(to=next_row)

    def work(_core: Int) {imm}:
        var scratch = Scratch(vocab_size)
        var i = Int(Atomic[Int64].fetch_add(counter, 1))
        while i < num_rows:
            var row = Row(unsafe_from_address=Int(rows.unsafe_offset(i).unsafe_load()))
            var peak = find_peaks(row, vocab_size, scratch.peaks.unsafe_ptr())
            peaks.unsafe_offset(i).unsafe_store(peak)
            if isfinite(peak):
                var weights = scratch.weights.unsafe_ptr()
                var total = weigh[False](weights, scratch.sums.unsafe_ptr(), row, vocab_size, peak, 1)
                sums.unsafe_offset(i).unsafe_store(total)
                var count = Int(num_top.unsafe_offset(i).unsafe_load())
                if count > 0:
                    rank_top(top.unsafe_offset(i * top_stride), row, vocab_size, count, peak, scratch)
            i = Int(Atomic[Int64].fetch_add(counter, 1))

    parallelize(work, min(num_rows, num_physical_cores()))
    _ = next_row


@export("exponentials")
def exponentials(y: Floats32, x: Floats32, n: Int) abi("C"):
    """Y = e ** x of n values up to 0, a multiple of LANES: what the weights are made of, for tests."""
    for i in range(0, n, LANES):
        y.unsafe_offset(i).unsafe_store(exponential(x.unsafe_offset(i).unsafe_load[width=LANES]()))


def sample_row(logits: Row, n: Int, cuts: Cuts, mut scratch: Scratch) -> Int:
    var peak = find_peaks(logits, n, scratch.peaks.unsafe_ptr())
    if not isfinite(peak):
        return -1
    if cuts.temperature == 0:
        return find_first(logits, n, peak, scratch)
    if cuts.top_k == 0 or cuts.top_k >= n:
        var total = weigh[True](
            scratch.weights.unsafe_ptr(), scratch.sums.unsafe_ptr(), logits, n, peak, cuts.temperature
        )
        return draw(n, total, cuts, scratch)
    var count = collect_top(logits, n, cuts.top_k, peak, scratch)
    var total = weigh[True](
        scratch.weights.unsafe_ptr(),
        scratch.sums.unsafe_ptr(),
        scratch.near.unsafe_ptr(),
        count,
        peak,
        cuts.temperature,
    )
    return Int(scratch.ids[draw(count, total, cuts, scratch)])


def find_first(logits: Row, n: Int, peak: Float32, scratch: Scratch) -> Int:
    """The first logit that equals the peak, from the first block whose own it is."""
    var block = 0
    while scratch.peaks[block] != peak:
        block += 1
    var i = block * BLOCK
    while logits.unsafe_offset(i).unsafe_load() != peak:
        i += 1
    return i


def draw(n: Int, total: Float64, cuts: Cuts, mut scratch: Scratch) -> Int:
    """The index of one of n weights, after the cuts."""
    var cut = Cut(0, 0)
    var sum = total
    if cuts.top_p < 1:
        cut = top_p_cut(n, total, cuts.top_p, scratch)
        sum = add_near(n, cut, scratch)
    if cuts.min_p > cut.value:
        cut = Cut(cuts.min_p, n)
        _ = narrow(n, cut.value, cut.value, scratch)
        sum = add_near(n, cut, scratch)
    # The random number may be 0 but never 1; a target above 0 passes over weights of 0.
    return first_reaching((1 - cuts.uniform) * sum, n, cut, scratch)


def add_near(n: Int, cut: Cut, mut scratch: Scratch) -> Float64:
    """Adds the weights that are near and kept to the sums of their blocks; returns the sum of all."""
    var total = Float64(0)
    var num_equal = cut.num_equal
    for block in range(ceildiv(n, BLOCK)):
        scratch.equals[block] = num_equal
        var near = scratch.near.unsafe_ptr().unsafe_offset(scratch.starts[block])
        scratch.sums[block] += sum_kept(near, scratch.starts[block + 1] - scratch.starts[block], cut, num_equal)
        total += scratch.sums[block]
    return total


@always_inline
def sum_kept(weights: Values, count: Int, cut: Cut, mut num_equal: Int) -> Float64:
    """The sum of those that are kept. num_equal: how many that equal the cut may still be; those are taken off it."""
    var sums = Doubles(0)
    var found = 0
    for i in range(0, count, LANES):
        var x = load(weights, i, count)
        sums += x.gt(Floats(cut.value)).select(x, Floats(0)).cast[DType.float64]()
        found += num_marked(x.eq(Floats(cut.value)))
    found = min(found, num_equal)
    num_equal -= found
    return sums.reduce_add() + Float64(found) * cut.value.cast[DType.float64]()


@always_inline
def kept(weight: Float32, cut: Cut, mut num_equal: Int) -> Float64:
    """The weight, or 0 if it isn't kept; num_equal: how many that equal the cut may still be kept."""
    if weight > cut.value:
        return weight.cast[DType.float64]()
    if weight < cut.value or num_equal == 0:
        return 0
    num_equal -= 1
    return weight.cast[DType.float64]()


def first_reaching(target: Float64, n: Int, cut: Cut, scratch: Scratch) -> Int:
    """The first index up to which the kept weights reach the target; the last kept one if roundings leave none."""
    var weights = scratch.weights.unsafe_ptr()
    var num_blocks = ceildiv(n, BLOCK)
    var before = Float64(0)
    var block = 0
    while block < num_blocks - 1 and before + scratch.sums[block] < target:
        before += scratch.sums[block]
        block += 1
    var num_equal = scratch.equals[block]
    var sum = Float64(0)
    var last = 0
    for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
        var weight = kept(weights.unsafe_offset(i).unsafe_load(), cut, num_equal)
        sum += weight
        if weight > 0:
            last = i
            if sum >= target - before:
                break
    return last
