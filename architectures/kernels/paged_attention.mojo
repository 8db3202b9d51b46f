"""Attention of ragged rows over the paged cache, on CPU."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility import _MutableInputTensor as MutableInputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.atomic import Atomic
from std.sys.info import num_physical_cores

from .attention_blocks import BlockScratch, attend_block
from .attention_few import FewScratch, attend_few
from .attention_plan import FEW_LANES, Call, Plan, untracked
from .attention_results import Partials, final_results, merge
from .pages import Mask, pages_of

comptime SERIAL = 1 << 16
"""Up to so many values of keys are multiplied sooner on one core than another core wakes up."""


@extensibility.register("graph_pipelines.paged_attention")
struct PagedAttention:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=3, ...],
        q: InputTensor[dtype=DType.float32, rank=3, ...],
        row_offsets: InputTensor[dtype=DType.uint32, rank=1, ...],
        pages: MutableInputTensor[dtype=dtype, rank=6, ...],
        lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
        cache_lengths: InputTensor[dtype=DType.uint32, rank=1, ...],
        layer: UInt32,
        scale: Float32,
        window: Int32,
        bidirectional: Int32,
        ctx: DeviceContext,
    ) raises:
        """Y [T, N, H] = softmax(q @ keys.T * scale) @ values, over the keys that each token sees.

        window: tokens before and with its own; 0: all. bidirectional: 1 if it sees the tokens after its own.
        """
        attend(
            Call(
                y=y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                q=q.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                row_offsets=row_offsets.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                lengths=cache_lengths.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
                num_rows=cache_lengths.dim_size(0),
                num_heads=q.dim_size(1),
                head_size=q.dim_size(2),
                pages=pages_of(pages, lookup_table, layer),
                scale=scale,
                mask=Mask(Int(window), bidirectional != 0),
            )
        )


def attend[dtype: DType](call: Call[dtype]):
    """Each core takes the next part until none is left: the last ones first, which see the most keys.

    Whoever computes the last part of a unit merges them.
    """
    var plan = Plan(call)
    var num_parts = len(plan.parts)
    var partials = Partials(plan.num_partial_lanes, call.head_size)
    var pending = List[Int64](length=len(plan.units), fill=0)
    for unit in range(len(plan.units)):
        pending[unit] = Int64(plan.units[unit].num_splits)
    var next_part = Int64(0)
    var counter = Pointer(to=next_part)

    def work(_core: Int) {imm}:
        var few = FewScratch(call.head_size, plan.max_keys)
        var blocks = BlockScratch(call.head_size, plan.max_lanes)
        var taken = Int(Atomic[Int64].fetch_add(counter, 1))
        while taken < num_parts:
            var number, split = plan.parts[num_parts - 1 - taken]
            var unit = plan.units[number]
            var is_split = unit.num_splits > 1
            var results = partials.results(call, unit, split) if is_split else final_results(call, unit)
            var first = unit.split_start(split)
            var count = unit.split_start(split + 1) - first
            if unit.num_tokens * call.group() <= FEW_LANES:
                attend_few(call, unit, results, first, count, few)
            else:
                attend_block(call, unit, results, first, count, blocks)
            if is_split and Atomic[Int64].fetch_add(untracked(pending).unsafe_offset(number), -1) == 1:
                merge(call, unit, partials)
            taken = Int(Atomic[Int64].fetch_add(counter, 1))

    if plan.num_values <= SERIAL:  # even one task is handed to another core
        work(0)
    else:
        parallelize(work, min(num_parts, num_physical_cores()))
    _ = next_part
    _ = pending^
    _ = partials^
