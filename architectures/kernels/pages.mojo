"""A layer's keys and values in pages, and which of them a query sees."""

from extensibility import InputTensor
from extensibility import _MutableInputTensor as MutableInputTensor

comptime HAS_SCALES = DType.int8
"""The type of pages whose rows end with a scale: H values, then a float32 of which they are multiples."""


@fieldwise_init
struct LayerPages[dtype: DType](ImplicitlyCopyable):
    """The keys and values of one layer, in pages of `page_size` tokens, each token with a row for each kv head.

    keys, values: those of page 0; another page's are a multiple of `page_stride` values from there.
    table: the page numbers of each row, [B, table_width].
    """

    var keys: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var values: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var table: Pointer[UInt32, MutUntrackedOrigin]
    var table_width: Int
    var page_stride: Int
    var page_size: Int
    var num_heads: Int
    var row_size: Int

    def find(self, offsets: Pointer[mut=True, Int, _], row: Int, head: Int, first: Int, count: Int):
        """Writes where the rows of `count` tokens are, from `keys` as from `values`."""
        var page = first // self.page_size
        var slot = first % self.page_size
        for i in range(count):
            var number = Int(self.table.unsafe_offset(row * self.table_width + page).unsafe_load())
            var place = (slot * self.num_heads + head) * self.row_size
            offsets.unsafe_offset(i).unsafe_store(number * self.page_stride + place)
            slot += 1
            if slot == self.page_size:
                slot = 0
                page += 1


def pages_of[
    dtype: DType
](
    pages: MutableInputTensor[dtype=dtype, rank=6, ...],
    lookup_table: InputTensor[dtype=DType.uint32, rank=2, ...],
    layer: UInt32,
) -> LayerPages[dtype]:
    """One layer of the page memory [pages, 2 (keys, values), layers, page size, kv heads, row size]."""
    var layer_size = pages.dim_size(3) * pages.dim_size(4) * pages.dim_size(5)
    var stride = pages.dim_size(2) * layer_size
    var keys = pages.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(Int(layer) * layer_size)
    return LayerPages(
        keys=keys,
        values=keys.unsafe_offset(stride),
        table=lookup_table.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        table_width=lookup_table.dim_size(1),
        page_stride=2 * stride,
        page_size=pages.dim_size(3),
        num_heads=pages.dim_size(4),
        row_size=pages.dim_size(5),
    )


@always_inline
def scale_of[dtype: DType](row: Pointer[Scalar[dtype], _], head_size: Int) -> Float32:
    """The scale at the end of a row of int8."""
    return row.unsafe_offset(head_size).unsafe_bitcast[Float32]().unsafe_load[alignment=1]()


@fieldwise_init
struct Mask(ImplicitlyCopyable):
    """The keys that a query sees: a range.

    window: tokens before and with its own; 0: all. bidirectional: whether it sees the tokens after its own.
    """

    var window: Int
    var bidirectional: Bool

    @always_inline
    def first(self, position: Int) -> Int:
        return max(0, position - self.window + 1) if self.window > 0 else 0

    @always_inline
    def end(self, position: Int, length: Int) -> Int:
        return length if self.bidirectional else position + 1
