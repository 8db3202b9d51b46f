"""Attention of the patches of images to one another, on CPU: that over pages, where each image is a page."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_up
from std.sys.info import num_physical_cores

from .attention_plan import Call, Floats, floats, untracked
from .paged_attention import attend
from .pages import LayerPages, Mask
from .vectors import WIDTH, copy, uninitialized, widen


@extensibility.register("graph_pipelines.image_attention")
struct ImageAttention:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=4, ...],
        q: InputTensor[dtype=DType.float32, rank=4, ...],
        k: InputTensor[dtype=DType.float32, rank=4, ...],
        v: InputTensor[dtype=DType.float32, rank=4, ...],
        scale: Float32,
        ctx: DeviceContext,
    ) raises:
        """Y = softmax(q @ k.T * scale) @ v for every head of every image, all [images, patches, N, H].

        Heads that are not whole vectors are copied, with zeros after them.
        """
        var P = q.dim_size(1)
        var N = q.dim_size(2)
        var H = q.dim_size(3)
        var num_heads = q.dim_size(0) * P * N
        var padded_H = align_up(H, WIDTH)
        var size = num_heads * padded_H if padded_H > H else 0
        var memory = uninitialized(4 * size)
        var results = y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var queries = q.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var keys = k.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var values = v.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        if size > 0:
            results = floats(memory)
            queries = padded(results.unsafe_offset(size), queries, num_heads, H)
            keys = padded(results.unsafe_offset(2 * size), keys, num_heads, H)
            values = padded(results.unsafe_offset(3 * size), values, num_heads, H)
        attend_images(results, queries, keys, values, q.dim_size(0), P, N, padded_H, scale)
        if size > 0:
            for i in range(num_heads):
                copy(y.unsafe_ptr().unsafe_offset(i * H), results.unsafe_offset(i * padded_H), H)
        _ = memory^


def padded(target: Floats, source: Floats, num_heads: Int, H: Int) -> Floats:
    """Copies heads of H values to the target, with zeros up to whole vectors."""
    var num_tasks = num_physical_cores()

    def task(t: Int) {imm}:
        for i in range(num_heads * t // num_tasks, num_heads * (t + 1) // num_tasks):
            widen(target.unsafe_offset(i * align_up(H, WIDTH)), source.unsafe_offset(i * H), H)

    parallelize(task, num_tasks)
    return target


def attend_images(
    y: Floats, q: Floats, k: Floats, v: Floats, num_images: Int, P: Int, N: Int, H: Int, scale: Float32
):
    """The same for heads of whole vectors."""
    var table = List[UInt32](length=num_images, fill=0)
    var row_offsets = List[UInt32](length=num_images + 1, fill=0)
    var lengths = List[UInt32](length=num_images, fill=0)
    for image in range(num_images):
        table[image] = UInt32(image)
        row_offsets[image + 1] = UInt32((image + 1) * P)
    attend(
        Call(
            y=y,
            q=q,
            row_offsets=untracked(row_offsets),
            lengths=untracked(lengths),
            num_rows=num_images,
            num_heads=N,
            head_size=H,
            pages=LayerPages(
                keys=k,
                values=v,
                table=untracked(table),
                table_width=1,
                page_stride=P * N * H,
                page_size=P,
                num_heads=N,
                row_size=H,
            ),
            scale=scale,
            mask=Mask(window=0, bidirectional=True),
        )
    )
    _ = table^
    _ = row_offsets^
    _ = lengths^
