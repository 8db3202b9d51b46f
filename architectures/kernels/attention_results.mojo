"""Where the results of queries go: to their places, or beside those of other keys, to be merged."""

from std.math import exp
from std.utils.numerics import neg_inf

from .attention_plan import Call, Floats, Unit, floats, untracked
from .vectors import WIDTH, Vector, load, store


@fieldwise_init
struct Results(ImplicitlyCopyable):
    """The results of a part: its lanes' places, by token and by head of the group, and whether others follow.

    values: sums of values, [num_tokens, group, H], the tokens `token_stride` apart. maxima, totals: the largest score
    and the sum of weights of each lane, for merging.
    """

    var values: Floats
    var maxima: Floats
    var totals: Floats
    var token_stride: Int
    var group: Int
    var head_size: Int
    var is_partial: Bool

    @always_inline
    def place(self, lane: Int) -> Floats:
        """The lane's H values."""
        return self.values.unsafe_offset(lane // self.group * self.token_stride + lane % self.group * self.head_size)

    @always_inline
    def close(self, lane: Int, maximum: Float32, total: Float32) -> Float32:
        """Keeps what merging needs; returns the factor of the lane's sums."""
        if not self.is_partial:
            return 1 / total
        self.maxima.unsafe_offset(lane).unsafe_store(maximum)
        self.totals.unsafe_offset(lane).unsafe_store(total)
        return 1


struct Partials:
    """Memory for the results of all parts of split units, lane after lane."""

    var values: List[Vector]
    var maxima: List[Float32]
    var totals: List[Float32]
    var head_size: Int

    def __init__(out self, lanes: Int, head_size: Int):
        self.values = List[Vector](unsafe_uninit_length=lanes * head_size // WIDTH)
        self.maxima = List[Float32](length=lanes, fill=0)
        self.totals = List[Float32](length=lanes, fill=0)
        self.head_size = head_size

    def results[dtype: DType](self, call: Call[dtype], unit: Unit, split: Int) -> Results:
        var lane = unit.first_lane + split * unit.num_tokens * call.group()
        return Results(
            values=floats(self.values).unsafe_offset(lane * self.head_size),
            maxima=untracked(self.maxima).unsafe_offset(lane),
            totals=untracked(self.totals).unsafe_offset(lane),
            token_stride=call.group() * self.head_size,
            group=call.group(),
            head_size=self.head_size,
            is_partial=True,
        )


def final_results[dtype: DType](call: Call[dtype], unit: Unit) -> Results:
    """The places in y."""
    var none = call.y
    return Results(
        values=call.y.unsafe_offset(call.lane_offset(unit, 0)),
        maxima=none,
        totals=none,
        token_stride=call.num_heads * call.head_size,
        group=call.group(),
        head_size=call.head_size,
        is_partial=False,
    )


@always_inline
def exp_or_zero(x: Vector) -> Vector:
    """Exp of x <= 0, and 0 where it leaves the normal numbers: the library's `exp` is not 0 even of -inf."""
    return x.lt(-87).select(Vector(0), exp(x))


def merge[dtype: DType](call: Call[dtype], unit: Unit, partials: Partials):
    """Adds up what the splits of a unit gave, relative to the largest score of all."""
    var target = final_results(call, unit)
    var lanes = unit.num_tokens * call.group()
    var first = partials.results(call, unit, 0)
    for lane in range(lanes):
        var maximum = Float32.MIN_FINITE
        for split in range(unit.num_splits):
            maximum = max(maximum, first.maxima.unsafe_offset(split * lanes + lane).unsafe_load())
        var place = target.place(lane)
        var total = Float32(0)
        for split in range(unit.num_splits):
            var i = split * lanes + lane
            var factor = exp_or_zero(Vector(first.maxima.unsafe_offset(i).unsafe_load() - maximum))[0]
            total = first.totals.unsafe_offset(i).unsafe_load().fma(factor, total)
            var source = first.values.unsafe_offset(i * call.head_size)
            for h in range(0, call.head_size, WIDTH):
                var before = load(place, h) if split > 0 else Vector(0)
                store(place, h, load(source, h).fma(Vector(factor), before))
        for h in range(0, call.head_size, WIDTH):
            store(place, h, load(place, h) * Vector(1 / total))
