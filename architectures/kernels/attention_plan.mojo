"""The parts of an attention over pages that cores compute one after the other.

A unit is the queries of one row and one kv head that share a pass over keys. Their lanes are the query heads of the
group, token after token. Where a row has fewer units than keep all cores busy, the keys of each are split.
"""

from std.math import ceildiv
from std.sys.info import num_physical_cores

from .pages import LayerPages, Mask
from .vectors import Vector

comptime Floats = Pointer[Float32, MutUntrackedOrigin]

comptime FEW_LANES = 8
"""Most lanes whose keys are used as they lie in the pages; more of them are packed side by side."""
comptime BLOCK_VALUES = 1 << 15
"""Values of packed queries, and as many of sums: with a block of keys and values they stay in L2."""
comptime MAX_BLOCK_LANES = 256
comptime MIN_SPLIT_KEYS = 128
comptime UNITS_PER_CORE = 4


@fieldwise_init
struct Call[dtype: DType](ImplicitlyCopyable):
    """The arguments of an attention: T tokens in B rows, N heads in groups of G, H values of a head.

    y, q: [T, N, H]. row_offsets: [B + 1]. lengths: tokens of each row before these, [B].
    """

    var y: Floats
    var q: Floats
    var row_offsets: Pointer[UInt32, MutUntrackedOrigin]
    var lengths: Pointer[UInt32, MutUntrackedOrigin]
    var num_rows: Int
    var num_heads: Int
    var head_size: Int
    var pages: LayerPages[Self.dtype]
    var scale: Float32
    var mask: Mask

    @always_inline
    def group(self) -> Int:
        return self.num_heads // self.pages.num_heads

    @always_inline
    def lane_offset(self, unit: Unit, lane: Int) -> Int:
        """Where a lane of a unit is in q and in y."""
        var token = unit.token + lane // self.group()
        var head = unit.head * self.group() + lane % self.group()
        return (token * self.num_heads + head) * self.head_size

    @always_inline
    def start(self, row: Int) -> Int:
        return Int(self.row_offsets.unsafe_offset(row).unsafe_load())


@fieldwise_init
struct Unit(ImplicitlyCopyable):
    """The queries of tokens `token` and following of all tokens, the first of them at `position` in its row.

    first_key, end_key: the keys that any of them sees. first_lane: of its partial results among all units'.
    """

    var row: Int
    var head: Int
    var token: Int
    var num_tokens: Int
    var position: Int
    var length: Int
    var first_key: Int
    var end_key: Int
    var num_splits: Int
    var first_lane: Int

    @always_inline
    def split_start(self, split: Int) -> Int:
        return self.first_key + (self.end_key - self.first_key) * split // self.num_splits


struct Plan:
    """The units, the unit and the split of each part, the lanes of partial results, and what bounds scratch memory."""

    var units: List[Unit]
    var parts: List[Tuple[Int, Int]]
    var num_partial_lanes: Int
    var max_lanes: Int
    var max_keys: Int
    var num_values: Int

    def __init__[dtype: DType](out self, call: Call[dtype]):
        self.units = List[Unit]()
        self.parts = List[Tuple[Int, Int]]()
        self.num_partial_lanes = 0
        self.max_lanes = 0
        self.max_keys = 0
        self.num_values = 0
        for row in range(call.num_rows):
            if call.start(row + 1) > call.start(row):
                self.add_row(call, row)

    def add_row[dtype: DType](mut self, call: Call[dtype], row: Int):
        """Blocks of about equal numbers of tokens, for each head."""
        var num_tokens = call.start(row + 1) - call.start(row)
        var cached = Int(call.lengths.unsafe_offset(row).unsafe_load())
        var num_blocks = ceildiv(num_tokens, block_tokens(num_tokens, call.group(), call.head_size))
        var num_units = num_blocks * call.pages.num_heads
        for block in range(num_blocks):
            var first = num_tokens * block // num_blocks
            var end = num_tokens * (block + 1) // num_blocks
            for head in range(call.pages.num_heads):
                var unit = Unit(
                    row=row,
                    head=head,
                    token=call.start(row) + first,
                    num_tokens=end - first,
                    position=cached + first,
                    length=cached + num_tokens,
                    first_key=call.mask.first(cached + first),
                    end_key=call.mask.end(cached + end - 1, cached + num_tokens),
                    num_splits=1,
                    first_lane=self.num_partial_lanes,
                )
                self.add(unit, num_units, call.group(), call.head_size)

    def add(mut self, var unit: Unit, num_units: Int, group: Int, head_size: Int):
        """The splits depend on the row alone, so that a row's results don't depend on the batch."""
        var num_keys = unit.end_key - unit.first_key
        var wanted = ceildiv(UNITS_PER_CORE * num_physical_cores(), num_units)
        unit.num_splits = max(1, min(wanted, ceildiv(num_keys, MIN_SPLIT_KEYS)))
        var lanes = unit.num_tokens * group
        if unit.num_splits > 1:
            self.num_partial_lanes += unit.num_splits * lanes
        self.max_lanes = max(self.max_lanes, lanes)
        self.max_keys = max(self.max_keys, ceildiv(num_keys, unit.num_splits))
        self.num_values += num_keys * head_size
        for split in range(unit.num_splits):
            self.parts.append((len(self.units), split))
        self.units.append(unit)


def block_tokens(num_tokens: Int, group: Int, head_size: Int) -> Int:
    """Most tokens of a unit."""
    if num_tokens * group <= FEW_LANES:
        return num_tokens
    return max(1, min(MAX_BLOCK_LANES, BLOCK_VALUES // head_size) // group)


def untracked[T: Copyable](list: List[T]) -> Pointer[T, MutUntrackedOrigin]:
    """The memory of a list that outlives its use."""
    return list.unsafe_ptr().unsafe_mut_cast[True]().unsafe_origin_cast[MutUntrackedOrigin]()


def floats(list: List[Vector]) -> Floats:
    return untracked(list).unsafe_bitcast[Float32]()
