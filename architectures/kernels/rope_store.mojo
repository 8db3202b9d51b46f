"""Norms and rotary position embeddings of queries and keys, and the storing of keys and values in pages, on CPU.

T tokens in B rows, N query heads and K kv heads of H values.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv, sqrt
from std.sys.info import num_physical_cores

from .narrow import narrow
from .pages import HAS_SCALES, LayerPages, pages_of
from .vectors import Vector, uninitialized

comptime Floats = Pointer[Float32, MutUntrackedOrigin]
comptime STEP = 8
"""Values that are rotated at a time: half of the smallest head."""
comptime Step = SIMD[DType.float32, STEP]
comptime SERIAL = 1 << 15
"""Up to so many values are rotated sooner on one core than another core wakes up."""
comptime MIN_SCALE = Float32(1e-30)
"""A head whose largest value is 127 times less is stored as zeros: the scale's reciprocal would not be a number."""


@extensibility.register("graph_pipelines.rope_split_store")
struct RopeSplitStore:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        q: OutputTensor[dtype=DType.float32, rank=3, ...],
        qkv: InputTensor[dtype=DType.float32, rank=2, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        position_ids: InputTensor[dtype=DType.uint32, rank=2, ...],
        pages: MutableInputTensor[dtype=dtype, rank=6, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        layer: UInt32,
        ctx: DeviceContext,
    ) raises:
        """Writes the rotated queries of qkv [T, (N + 2 K) * H] to q [T, N, H], keys and values to the pages.

        freqs_cis: [positions, H], cosine and sine of each pair. position_ids: [1, T].
        """
        var rotation = rotation_of(q, qkv, freqs_cis, position_ids)
        rotate_and_store(
            rotation,
            Norms.none(rotation.x),
            pages_of(pages, lookup_table, layer),
            row_offsets.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            cache_lengths.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            cache_lengths.dim_size(0),
        )


@extensibility.register("graph_pipelines.norm_rope_split_store")
struct NormRopeSplitStore:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        q: OutputTensor[dtype=DType.float32, rank=3, ...],
        qkv: InputTensor[dtype=DType.float32, rank=2, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        position_ids: InputTensor[dtype=DType.uint32, rank=2, ...],
        pages: MutableInputTensor[dtype=dtype, rank=6, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        layer: UInt32,
        q_norm: InputTensor[dtype=DType.float32, rank=1, ...],
        k_norm: InputTensor[dtype=DType.float32, rank=1, ...],
        weight_offset: Float32,
        epsilon: Float32,
        has_v_norm: Int32,
        ctx: DeviceContext,
    ) raises:
        """The same with heads of queries and keys that are normalized first, by the weights [H] plus the offset.

        has_v_norm: whether values are normalized too, without a weight. In qkv [T, (N + K) * H] keys are values too.
        """
        rotate_and_store(
            rotation_of(q, qkv, freqs_cis, position_ids),
            Norms(
                q_norm.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                k_norm.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                weight_offset,
                epsilon,
                True,
                has_v_norm != 0,
            ),
            pages_of(pages, lookup_table, layer),
            row_offsets.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            cache_lengths.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            cache_lengths.dim_size(0),
        )


def rotation_of(
    q: OutputTensor[dtype=DType.float32, rank=3, ...],
    x: InputTensor[dtype=DType.float32, rank=2, ...],
    freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
    position_ids: InputTensor[dtype=DType.uint32, rank=2, ...],
) -> Rotation:
    return Rotation(
        q=q.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        x=x.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        freqs=freqs_cis.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        positions=position_ids.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        width=x.dim_size(1),
        num_heads=q.dim_size(1),
        head_size=q.dim_size(2),
    )


@extensibility.register("graph_pipelines.rope")
struct Rope:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        x: InputTensor[dtype=DType.float32, rank=3, ...],
        freqs_cis: InputTensor[dtype=DType.float32, rank=2, ...],
        position_ids: InputTensor[dtype=DType.uint32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [T, N, H] = x, rotated."""
        var rotation = Rotation(
            q=y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            x=x.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            freqs=freqs_cis.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            positions=position_ids.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            width=x.dim_size(1) * x.dim_size(2),
            num_heads=x.dim_size(1),
            head_size=x.dim_size(2),
        )

        var norms = Norms.none(rotation.x)

        def task(token: Int) {imm}:
            rotation.rotate_queries(token, norms)

        for_tokens(task, x.dim_size(0), rotation.width)


@fieldwise_init
struct Rotation(ImplicitlyCopyable):
    """The arguments of a rotation: x [T, width], whose first N heads go to q [T, N, H]."""

    var q: Floats
    var x: Floats
    var freqs: Floats
    var positions: Pointer[UInt32, MutUntrackedOrigin]
    var width: Int
    var num_heads: Int
    var head_size: Int

    def rotate_queries(self, token: Int, norms: Norms):
        var source = self.x.unsafe_offset(token * self.width)
        var target = self.q.unsafe_offset(token * self.num_heads * self.head_size)
        for n in range(0, self.num_heads * self.head_size, self.head_size):
            var head = target.unsafe_offset(n)
            self.rotate(head, norms.of_queries(head, source.unsafe_offset(n), self.head_size), token)

    @always_inline
    def rotate(self, target: Floats, source: Floats, token: Int):
        """One head, in place or not: value i and value i + H / 2 are a pair."""
        var position = Int(self.positions.unsafe_offset(token).unsafe_load())
        var freqs = self.freqs.unsafe_offset(position * self.head_size)
        var half = self.head_size // 2
        for i in range(0, half, STEP):
            var cos, sin = freqs.unsafe_offset(2 * i).unsafe_load[width=2 * STEP]().deinterleave()
            var a = source.unsafe_offset(i).unsafe_load[width=STEP]()
            var b = source.unsafe_offset(half + i).unsafe_load[width=STEP]()
            target.unsafe_offset(i).unsafe_store(a * cos - b * sin)
            target.unsafe_offset(half + i).unsafe_store(b * cos + a * sin)


def rotate_and_store[
    dtype: DType
](
    rotation: Rotation,
    norms: Norms,
    pages: LayerPages[dtype],
    row_offsets: Pointer[UInt32, MutUntrackedOrigin],
    lengths: Pointer[UInt32, MutUntrackedOrigin],
    num_rows: Int,
):
    """Each token's heads, on whatever core."""
    var H = rotation.head_size
    var has_values = rotation.width // H > rotation.num_heads + pages.num_heads

    def task(token: Int) {imm}:
        var memory = uninitialized(H)
        var head = memory.unsafe_ptr().unsafe_bitcast[Float32]().unsafe_origin_cast[MutUntrackedOrigin]()
        var row = row_of(token, row_offsets, num_rows)
        var start = Int(row_offsets.unsafe_offset(row).unsafe_load())
        var position = Int(lengths.unsafe_offset(row).unsafe_load()) + token - start
        var keys = rotation.x.unsafe_offset(token * rotation.width + rotation.num_heads * H)
        rotation.rotate_queries(token, norms)
        for k in range(pages.num_heads):
            var offset = 0
            pages.find(Pointer(to=offset), row, k, position, 1)
            var key = keys.unsafe_offset(k * H)
            rotation.rotate(head, norms.of_keys(head, key, H), token)
            store_head(pages.keys.unsafe_offset(offset), head, H)
            var value = keys.unsafe_offset((pages.num_heads + k) * H) if has_values else key
            store_head(pages.values.unsafe_offset(offset), norms.of_values(head, value, H), H)
        _ = memory^

    for_tokens(task, Int(row_offsets.unsafe_offset(num_rows).unsafe_load()), rotation.width)


@fieldwise_init
struct Norms(ImplicitlyCopyable):
    """Root mean square norms of heads: of queries and keys with weights [H], of values without."""

    var query_weights: Floats
    var key_weights: Floats
    var weight_offset: Float32
    var epsilon: Float32
    var has_queries_and_keys: Bool
    var has_values: Bool

    @staticmethod
    def none(unused: Floats) -> Self:
        """No norms; the pointer is never read."""
        return Self(unused, unused, 0, 0, False, False)

    @always_inline
    def of_queries(self, target: Floats, head: Floats, H: Int) -> Floats:
        """The normalized head, which is written to the target; the head itself where queries have no norm."""
        return self.weighted(target, head, self.query_weights, H)

    @always_inline
    def of_keys(self, target: Floats, head: Floats, H: Int) -> Floats:
        return self.weighted(target, head, self.key_weights, H)

    @always_inline
    def of_values(self, target: Floats, head: Floats, H: Int) -> Floats:
        if not self.has_values:
            return head
        self.normalize(target, head, H)
        return target

    @always_inline
    def weighted(self, target: Floats, head: Floats, weights: Floats, H: Int) -> Floats:
        """The head, normalized and times its weights, which is written to the target; or the head as it is."""
        if not self.has_queries_and_keys:
            return head
        self.normalize(target, head, H)
        for h in range(0, H, STEP):
            var weight = weights.unsafe_offset(h).unsafe_load[width=STEP]() + Step(self.weight_offset)
            target.unsafe_offset(h).unsafe_store(target.unsafe_offset(h).unsafe_load[width=STEP]() * weight)
        return target

    @always_inline
    def normalize(self, target: Floats, head: Floats, H: Int):
        var squares = Step(0)
        for h in range(0, H, STEP):
            var values = head.unsafe_offset(h).unsafe_load[width=STEP]()
            squares = values.fma(values, squares)
        var factor = 1 / sqrt(squares.reduce_add() / Float32(H) + self.epsilon)
        for h in range(0, H, STEP):
            target.unsafe_offset(h).unsafe_store(head.unsafe_offset(h).unsafe_load[width=STEP]() * Step(factor))


def row_of(token: Int, row_offsets: Pointer[UInt32, _], num_rows: Int) -> Int:
    """The last row that begins at the token or before it: rows may be empty."""
    var low = 0
    var high = num_rows
    while high - low > 1:
        var middle = (low + high) // 2
        if Int(row_offsets.unsafe_offset(middle).unsafe_load()) <= token:
            low = middle
        else:
            high = middle
    return low


@always_inline
def for_tokens[F: def(Int) -> None](task: F, count: Int, width: Int):
    """Calls a task for each token, on all cores where they are many."""
    if count * width <= SERIAL:
        for token in range(count):
            task(token)
        return
    var num_tasks = num_physical_cores()
    var share = ceildiv(count, num_tasks)

    def tasks(t: Int) {imm}:
        for token in range(t * share, min((t + 1) * share, count)):
            task(token)

    parallelize(tasks, num_tasks)


@always_inline
def store_head[dtype: DType](target: Pointer[mut=True, Scalar[dtype], _], source: Floats, H: Int):
    """Stores H values as the pages keep them: in int8 as multiples of a 127th of the largest."""
    comptime if dtype == HAS_SCALES:
        var largest = Step(0)
        for h in range(0, H, STEP):
            largest = max(largest, abs(source.unsafe_offset(h).unsafe_load[width=STEP]()))
        var scale = largest.reduce_max() / 127
        var factor = 1 / scale if scale >= MIN_SCALE else Float32(0)
        for h in range(0, H, STEP):
            var values = source.unsafe_offset(h).unsafe_load[width=STEP]() * Step(factor)
            target.unsafe_offset(h).unsafe_store[alignment=1](round(values).cast[dtype]())
        target.unsafe_offset(H).unsafe_bitcast[Float32]().unsafe_store[alignment=1](scale)
    else:
        for h in range(0, H, STEP):
            var values = source.unsafe_offset(h).unsafe_load[width=STEP]()
            target.unsafe_offset(h).unsafe_store(narrow[dtype, STEP](values))
