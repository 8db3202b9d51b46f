"""Attention of a few queries, as in decoding: keys and values are read once, in order, at the memory's speed."""

from std.math import align_down, align_up, iota
from std.sys.info import size_of
from std.sys.intrinsics import PrefetchOptions, prefetch
from std.utils.numerics import neg_inf

from .attention_plan import FEW_LANES, Call, Unit, floats, untracked
from .attention_results import Results, exp_or_zero
from .pages import HAS_SCALES, scale_of
from .vectors import LINE_BYTES, WIDTH, Vector, load, store, zeros

comptime KEYS = 32
"""Keys of a block: while their scores are computed, their values are fetched, and then the next block's keys."""
comptime MR = 4
"""Queries that are multiplied at a time: fewer are filled up with zeros, which costs nothing at the memory's speed."""
comptime NR = 4
"""Keys that are multiplied at a time."""
comptime NV = 4
"""Vectors of a head's values that are summed at a time."""


struct FewScratch:
    """A core's memory.

    queries, sums: [FEW_LANES, H]. scores: of a block, [FEW_LANES, KEYS]. scales: of its keys and of its values,
    [2, KEYS]. offsets: of all keys in the page memory, followed by the last one again.
    """

    var queries: List[Vector]
    var sums: List[Vector]
    var scores: List[Vector]
    var scales: List[Vector]
    var offsets: List[Int]
    var maxima: List[Float32]
    var totals: List[Float32]
    var factors: List[Float32]

    def __init__(out self, head_size: Int, max_keys: Int):
        self.queries = zeros(FEW_LANES * head_size)
        self.sums = zeros(FEW_LANES * head_size)
        self.scores = zeros(FEW_LANES * KEYS)
        self.scales = zeros(2 * KEYS)
        self.offsets = List[Int](length=max_keys + 2 * KEYS, fill=0)
        self.maxima = List[Float32](length=FEW_LANES, fill=0)
        self.totals = List[Float32](length=FEW_LANES, fill=0)
        self.factors = List[Float32](length=FEW_LANES, fill=0)


def attend_few[
    dtype: DType
](call: Call[dtype], unit: Unit, results: Results, first_key: Int, num_keys: Int, mut scratch: FewScratch):
    """The results of up to FEW_LANES queries, block after block of keys."""
    var lanes = unit.num_tokens * call.group()
    load_queries(call, unit, scratch)
    var offsets = untracked(scratch.offsets)
    call.pages.find(offsets, unit.row, unit.head, first_key, num_keys)
    for i in range(num_keys, num_keys + 2 * KEYS):
        offsets.unsafe_offset(i).unsafe_store(offsets.unsafe_offset(num_keys - 1).unsafe_load())
    for start in range(0, num_keys, KEYS):
        var count = min(KEYS, num_keys - start)
        var keys = offsets.unsafe_offset(start)
        multiply_keys(call, scratch, keys, align_up(lanes, MR), count)
        for lane in range(lanes):
            var position = unit.position + lane // call.group()
            var first = call.mask.first(position) - first_key - start
            var end = min(count, call.mask.end(position, unit.length) - first_key - start)
            add_softmax[dtype](scratch, lane, first, end)
        multiply_values(call, scratch, keys, align_up(lanes, MR), count)
    var sums = floats(scratch.sums)
    for lane in range(lanes):
        var factor = results.close(lane, scratch.maxima[lane], scratch.totals[lane])
        for h in range(0, call.head_size, WIDTH):
            store(results.place(lane), h, load(sums, lane * call.head_size + h) * Vector(factor))


def load_queries[dtype: DType](call: Call[dtype], unit: Unit, mut scratch: FewScratch):
    """Copies the queries times the scale and forgets the sums; lanes that fill up keep whatever numbers they have."""
    var H = call.head_size
    var queries = floats(scratch.queries)
    var sums = floats(scratch.sums)
    for lane in range(unit.num_tokens * call.group()):
        for h in range(0, H, WIDTH):
            store(queries, lane * H + h, load(call.q, call.lane_offset(unit, lane) + h) * Vector(call.scale))
    for i in range(0, FEW_LANES * H, WIDTH):
        store(sums, i, Vector(0))
    for lane in range(FEW_LANES):
        scratch.maxima[lane] = neg_inf[DType.float32]()
        scratch.totals[lane] = 0
        scratch.factors[lane] = 0


def multiply_keys[
    dtype: DType
](call: Call[dtype], mut scratch: FewScratch, offsets: Pointer[Int, _], lanes: Int, count: Int):
    """Scores [lanes, count], and what is left over up to whole vectors of NR keys."""
    var H = call.head_size
    var queries = floats(scratch.queries)
    var scores = floats(scratch.scores)
    for key in range(0, count, NR):
        for lane in range(0, lanes, MR):
            multiply_tile(
                scores.unsafe_offset(lane * KEYS + key),
                queries.unsafe_offset(lane * H),
                call.pages.keys,
                call.pages.values,
                offsets.unsafe_offset(key),
                H,
            )
    comptime if dtype == HAS_SCALES:
        for key in range(count):
            var offset = offsets.unsafe_offset(key).unsafe_load()
            var scales = floats(scratch.scales)
            scales.unsafe_offset(key).unsafe_store(scale_of(call.pages.keys.unsafe_offset(offset), H))
            scales.unsafe_offset(KEYS + key).unsafe_store(scale_of(call.pages.values.unsafe_offset(offset), H))


@always_inline
def multiply_tile[
    dtype: DType
](
    scores: Pointer[mut=True, Float32, _],
    queries: Pointer[Float32, _],
    keys: Pointer[Scalar[dtype], _],
    values: Pointer[Scalar[dtype], _],
    offsets: Pointer[Int, _],
    H: Int,
):
    """The scores of MR queries and NR keys; meanwhile the keys' values are prefetched."""
    var sums = Array[Vector, MR * NR](fill=Vector(0))
    for h in range(0, H, WIDTH):
        var vectors = Array[Vector, NR](fill=Vector(0))
        comptime for n in range(NR):
            var place = offsets.unsafe_offset(n).unsafe_load() + h
            vectors[n] = keys.unsafe_offset(place).unsafe_load[width=WIDTH, alignment=1]().cast[DType.float32]()
            fetch(values.unsafe_offset(place))
        comptime for m in range(MR):
            var query = load(queries, m * H + h)
            comptime for n in range(NR):
                sums[m * NR + n] = vectors[n].fma(query, sums[m * NR + n])
    comptime for m in range(MR):
        var row = Array[Vector, NR](fill=Vector(0))
        comptime for n in range(NR):
            row[n] = sums[m * NR + n]
        scores.unsafe_offset(m * KEYS).unsafe_store(totals_of(row))


@always_inline
def fetch[dtype: DType](place: Pointer[Scalar[dtype], _]):
    """Into L2: L1 has the block that is being multiplied."""
    prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](place)


@always_inline
def totals_of(sums: Array[Vector, NR]) -> SIMD[DType.float32, NR]:
    """The total of each vector."""
    var even = add_interleaved(sums[0], sums[2])
    var odd = add_interleaved(sums[1], sums[3])
    return add_interleaved(even, odd).reduce_add[NR]()


@always_inline
def add_interleaved(a: Vector, b: Vector) -> Vector:
    """Sums of pairs of a's values and of b's, by turns."""
    var both = a.interleave(b)
    return both.slice[WIDTH, offset=0]() + both.slice[WIDTH, offset=WIDTH]()


@always_inline
def add_softmax[dtype: DType](mut scratch: FewScratch, lane: Int, first: Int, end: Int):
    """Turns a lane's scores into weights of the values; keys before `first` and from `end` have none.

    They are relative to the largest score so far: what was summed before is to be multiplied by the lane's factor.
    """
    var scores = floats(scratch.scores).unsafe_offset(lane * KEYS)
    var scales = floats(scratch.scales)
    var maxima = Vector(scratch.maxima[lane])
    comptime for i in range(0, KEYS, WIDTH):
        var values = load(scores, i)
        comptime if dtype == HAS_SCALES:
            values *= load(scales, i)
        var keys = iota[DType.int32, WIDTH](Int32(i))
        values = (keys.ge(Int32(first)) & keys.lt(Int32(end))).select(values, Vector(neg_inf[DType.float32]()))
        maxima = max(maxima, values)
        store(scores, i, values)
    var maximum = maxima.reduce_max()
    # Where no key was seen yet, all scores are -inf, and so is the largest.
    var origin = Float32(0) if maximum == neg_inf[DType.float32]() else maximum
    scratch.factors[lane] = exp_or_zero(Vector(scratch.maxima[lane] - origin))[0]
    scratch.maxima[lane] = maximum
    var totals = Vector(0)
    comptime for i in range(0, KEYS, WIDTH):
        var weights = exp_or_zero(load(scores, i) - Vector(origin))
        totals += weights
        comptime if dtype == HAS_SCALES:
            weights *= load(scales, KEYS + i)
        store(scores, i, weights)
    scratch.totals[lane] = scratch.totals[lane].fma(scratch.factors[lane], totals.reduce_add())


def multiply_values[
    dtype: DType
](call: Call[dtype], mut scratch: FewScratch, offsets: Pointer[Int, _], lanes: Int, count: Int):
    """Adds the values of a block, times their weights, to what was summed before."""
    var H = call.head_size
    var whole = align_down(H, NV * WIDTH)
    for lane in range(0, lanes, MR):
        for h in range(0, whole, NV * WIDTH):
            add_values[NV](call, scratch, offsets, lane, h, count)
        for h in range(whole, H, WIDTH):
            add_values[1](call, scratch, offsets, lane, h, count)


@always_inline
def add_values[
    S: Int, dtype: DType
](call: Call[dtype], mut scratch: FewScratch, offsets: Pointer[Int, _], lane: Int, h: Int, count: Int):
    """Those from h of each head, S vectors of them, for MR lanes; meanwhile the next block's keys are prefetched."""
    comptime lines = max(1, S * WIDTH * size_of[dtype]() // LINE_BYTES)
    var H = call.head_size
    var sums = floats(scratch.sums).unsafe_offset(lane * H + h)
    var weights = floats(scratch.scores).unsafe_offset(lane * KEYS)
    var values = call.pages.values.unsafe_offset(h)
    var next_keys = call.pages.keys.unsafe_offset(h)
    var totals = Array[Vector, MR * S](fill=Vector(0))
    comptime for i in range(MR * S):
        totals[i] = load(sums, i // S * H + i % S * WIDTH) * Vector(scratch.factors[lane + i // S])
    for key in range(count):
        var row = values.unsafe_offset(offsets.unsafe_offset(key).unsafe_load())
        var next_row = next_keys.unsafe_offset(offsets.unsafe_offset(key + KEYS).unsafe_load())
        comptime for line in range(lines):
            fetch(next_row.unsafe_offset(line * (LINE_BYTES // size_of[dtype]())))
        var vectors = Array[Vector, S](fill=Vector(0))
        comptime for s in range(S):
            vectors[s] = row.unsafe_offset(s * WIDTH).unsafe_load[width=WIDTH, alignment=1]().cast[DType.float32]()
        comptime for m in range(MR):
            var weight = Vector(weights.unsafe_offset(m * KEYS + key).unsafe_load())
            comptime for s in range(S):
                totals[m * S + s] = vectors[s].fma(weight, totals[m * S + s])
    comptime for i in range(MR * S):
        store(sums, i // S * H + i % S * WIDTH, totals[i])
