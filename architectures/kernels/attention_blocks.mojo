"""Attention of many queries, as in prefill: blocks of queries in L2, which blocks of keys and values pass.

Lanes lie side by side in vectors, so that the softmax of each needs no sum across a vector, and keys and values are
multiplied as they are: one of their numbers times a vector of lanes.
"""

from std.math import align_up, ceildiv
from std.utils.numerics import neg_inf

from .attention_plan import FEW_LANES, Call, Unit, floats, untracked
from .attention_results import Results, exp_or_zero
from .attention_tile import NR, NV, PANEL, STRIDE, multiply_tile
from .pages import HAS_SCALES, scale_of
from .vectors import WIDTH, Vector, load, store, transpose, uninitialized, widen, zeros

comptime KEYS = 96
"""Keys of a block, whole tiles."""
comptime DEPTH = 64
"""Most products of a score that are summed one after the other: sums of sums err less."""
comptime Lanes = SIMD[DType.int32, WIDTH]


struct BlockScratch:
    """A core's memory for M lanes, panel after panel.

    queries: [panels, H, lanes of a panel]. scores: [panels, KEYS, lanes]. sums: [panels, H and NR - 1, lanes].
    keys: a tile [NR, STRIDE]. values: a block [KEYS, STRIDE]. first, end: the keys of the block that each lane sees.
    """

    var queries: List[Vector]
    var scores: List[Vector]
    var sums: List[Vector]
    var keys: List[Vector]
    var values: List[Vector]
    var maxima: List[Vector]
    var totals: List[Vector]
    var factors: List[Vector]
    var ones: List[Vector]
    var first: List[Lanes]
    var end: List[Lanes]
    var offsets: List[Int]
    var scales: List[Float32]

    def __init__(out self, head_size: Int, max_lanes: Int):
        var M = align_up(max_lanes, WIDTH) if max_lanes > FEW_LANES else 0
        var rows = KEYS if M > 0 else 0
        self.queries = uninitialized(M * head_size)
        self.scores = uninitialized(M * KEYS)
        self.sums = uninitialized(M * align_up(head_size, NR))
        self.keys = zeros(NR * STRIDE)
        self.values = zeros(rows * STRIDE)
        self.maxima = zeros(M)
        self.totals = zeros(M)
        self.factors = zeros(M)
        self.ones = List[Vector](length=NV, fill=Vector(1))
        self.first = List[Lanes](length=M // WIDTH, fill=Lanes(0))
        self.end = List[Lanes](length=M // WIDTH, fill=Lanes(0))
        self.offsets = List[Int](length=KEYS, fill=0)
        self.scales = List[Float32](length=2 * KEYS, fill=1)


def attend_block[
    dtype: DType
](call: Call[dtype], unit: Unit, results: Results, first_key: Int, num_keys: Int, mut scratch: BlockScratch):
    """The results of a unit's lanes, block after block of keys."""
    var vectors = ceildiv(unit.num_tokens * call.group(), WIDTH)
    load_lanes(call, unit, vectors, scratch)
    for start in range(0, num_keys, KEYS):
        var count = min(KEYS, num_keys - start)
        call.pages.find(untracked(scratch.offsets), unit.row, unit.head, first_key + start, count)
        multiply_keys(call, scratch, vectors, first_key + start, count)
        for vector in range(vectors):
            add_softmax[dtype](scratch, vector, vectors, first_key + start, count)
        multiply_values(call, scratch, vectors, first_key + start, count)
    store_lanes(call, unit, results, vectors, scratch)


@always_inline
def panel_lanes(lane: Int, vectors: Int) -> Int:
    """Number of lanes in the panel that begins at `lane`."""
    return min(PANEL, vectors * WIDTH - lane)


@always_inline
def panel_keys(scratch: BlockScratch, lane: Int, vectors: Int, first_key: Int, count: Int) -> Int:
    """Number of keys of a block up to the last that any lane of the panel sees; 0 if they see none."""
    var last = (lane + panel_lanes(lane, vectors)) // WIDTH - 1
    var is_past = Int(scratch.first[lane // WIDTH][0]) >= first_key + count
    return 0 if is_past else max(0, min(count, Int(scratch.end[last][WIDTH - 1]) - first_key))


def load_lanes[dtype: DType](call: Call[dtype], unit: Unit, vectors: Int, mut scratch: BlockScratch):
    """Packs the queries times the scale, zeros where there is none; each vector of lanes is a column of its panel."""
    var lanes = unit.num_tokens * call.group()
    var queries = floats(scratch.queries)
    for vector in range(vectors):
        var panel = vector // NV * PANEL
        var target = queries.unsafe_offset(panel * call.head_size + vector % NV * WIDTH)
        for h in range(0, call.head_size, WIDTH):
            var square = Array[Vector, WIDTH](fill=Vector(0))
            comptime for i in range(WIDTH):
                if vector * WIDTH + i < lanes:
                    square[i] = load(call.q, call.lane_offset(unit, vector * WIDTH + i) + h) * Vector(call.scale)
            transpose(square)
            comptime for i in range(WIDTH):
                store(target, (h + i) * panel_lanes(panel, vectors), square[i])
        scratch.maxima[vector] = Vector(neg_inf[DType.float32]())
        scratch.totals[vector] = 0
        for i in range(WIDTH):
            var position = unit.position + (vector * WIDTH + i) // call.group()
            scratch.first[vector][i] = Int32(call.mask.first(position))
            scratch.end[vector][i] = Int32(call.mask.end(position, unit.length))
    var sums = floats(scratch.sums)
    for i in range(0, vectors * WIDTH * align_up(call.head_size, NR), WIDTH):
        store(sums, i, Vector(0))


def multiply_keys[
    dtype: DType
](call: Call[dtype], mut scratch: BlockScratch, vectors: Int, first_key: Int, count: Int):
    """Scores of the keys that each panel sees, and of what else is in the last tile."""
    var tile = floats(scratch.keys)
    var scores = floats(scratch.scores)
    var queries = floats(scratch.queries)
    var ones = floats(scratch.ones)
    var H = call.head_size
    for key in range(0, count, NR):
        for n in range(min(NR, count - key)):
            var row = call.pages.keys.unsafe_offset(scratch.offsets[key + n])
            widen(tile.unsafe_offset(n * STRIDE), row, H)
            comptime if dtype == HAS_SCALES:
                var values = call.pages.values.unsafe_offset(scratch.offsets[key + n])
                scratch.scales[key + n] = scale_of(row, H)
                scratch.scales[KEYS + key + n] = scale_of(values, H)
        for lane in range(0, vectors * WIDTH, PANEL):
            if key < panel_keys(scratch, lane, vectors, first_key, count):
                var width = panel_lanes(lane, vectors)
                var target = scores.unsafe_offset(lane * KEYS + key * width)
                for h in range(0, H, DEPTH):
                    var x = queries.unsafe_offset(lane * H + h * width)
                    var depth = min(DEPTH, H - h)
                    multiply_tile[STRIDE, 1](target, x, tile.unsafe_offset(h), depth, width, ones, h > 0)


def multiply_values[
    dtype: DType
](call: Call[dtype], mut scratch: BlockScratch, vectors: Int, first_key: Int, count: Int):
    """Adds the values of a block, times their weights, to what was summed before, times its factors."""
    var block = floats(scratch.values)
    var scores = floats(scratch.scores)
    var sums = floats(scratch.sums)
    var factors = floats(scratch.factors)
    var H = call.head_size
    for key in range(count):
        widen(block.unsafe_offset(key * STRIDE), call.pages.values.unsafe_offset(scratch.offsets[key]), H)
    for lane in range(0, vectors * WIDTH, PANEL):
        var width = panel_lanes(lane, vectors)
        var weights = scores.unsafe_offset(lane * KEYS)
        var depth = panel_keys(scratch, lane, vectors, first_key, count)
        for h in range(0, H if depth > 0 else 0, NR):
            var target = sums.unsafe_offset(lane * align_up(H, NR) + h * width)
            multiply_tile[1, STRIDE](
                target, weights, block.unsafe_offset(h), depth, width, factors.unsafe_offset(lane), True
            )


def add_softmax[
    dtype: DType
](mut scratch: BlockScratch, vector: Int, vectors: Int, first_key: Int, num_keys: Int):
    """Turns scores of a vector of lanes into weights of the values, relative to the largest score so far."""
    var panel = vector // NV * PANEL
    var width = panel_lanes(panel, vectors)
    var count = panel_keys(scratch, panel, vectors, first_key, num_keys)
    var scores = floats(scratch.scores).unsafe_offset(panel * KEYS + vector % NV * WIDTH)
    comptime if dtype == HAS_SCALES:
        for key in range(count):
            store(scores, key * width, load(scores, key * width) * Vector(scratch.scales[key]))
    mask_scores(scores, width, scratch.first[vector] - Int32(first_key), scratch.end[vector] - Int32(first_key), count)
    var maxima = scratch.maxima[vector]
    for key in range(count):
        maxima = max(maxima, load(scores, key * width))
    # Where no key was seen yet, all scores are -inf, and so is the largest.
    var is_empty = maxima.eq(Vector(neg_inf[DType.float32]()))
    var origin = is_empty.select(Vector(0), maxima)
    var factors = exp_or_zero(scratch.maxima[vector] - origin)
    var totals = Vector(0)
    for key in range(count):
        var weights = exp_or_zero(load(scores, key * width) - origin)
        totals += weights
        comptime if dtype == HAS_SCALES:
            weights *= Vector(scratch.scales[KEYS + key])
        store(scores, key * width, weights)
    scratch.maxima[vector] = maxima
    scratch.factors[vector] = factors
    scratch.totals[vector] = scratch.totals[vector].fma(factors, totals)


@always_inline
def mask_scores(scores: Pointer[mut=True, Float32, _], width: Int, first: Lanes, end: Lanes, count: Int):
    """Leaves of each lane's scores those of keys from `first` to `end`."""
    if first.reduce_max() > 0 or end.reduce_min() < Int32(count):
        for key in range(count):
            var is_seen = first.le(Int32(key)) & end.gt(Int32(key))
            store(scores, key * width, is_seen.select(load(scores, key * width), Vector(neg_inf[DType.float32]())))


def store_lanes[
    dtype: DType
](call: Call[dtype], unit: Unit, results: Results, vectors: Int, mut scratch: BlockScratch):
    """Transposes the sums back to the lanes' places."""
    var H = call.head_size
    var sums = floats(scratch.sums)
    for vector in range(vectors):
        var panel = vector // NV * PANEL
        var width = panel_lanes(panel, vectors)
        var source = sums.unsafe_offset(panel * align_up(H, NR) + vector % NV * WIDTH)
        var num_lanes = min(WIDTH, unit.num_tokens * call.group() - vector * WIDTH)
        var factors = Vector(0)
        for i in range(num_lanes):
            factors[i] = results.close(
                vector * WIDTH + i, scratch.maxima[vector][i], scratch.totals[vector][i]
            )
        for h in range(0, H, WIDTH):
            var square = Array[Vector, WIDTH](fill=Vector(0))
            comptime for i in range(WIDTH):
                square[i] = load(source, (h + i) * width) * factors
            transpose(square)
            comptime for i in range(WIDTH):
                if i < num_lanes:
                    store(results.place(vector * WIDTH + i), h, square[i])
