"""A layer's keys and values in pages, and which of them a query sees."""

comptime HAS_SCALES = DType.int8
"""The type of pages whose rows end with a scale: H values, then a float32 of which they are multiples."""


@fieldwise_init
struct LayerPages[dtype: DType](ImplicitlyCopyable):
    """One layer of the page memory [pages, 2 (keys, values), layers, page size, kv heads, row size].

    table: the page numbers of each row, [B, table_width].
    """

    var memory: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var table: Pointer[UInt32, MutUntrackedOrigin]
    var table_width: Int
    var num_layers: Int
    var layer: Int
    var page_size: Int
    var num_heads: Int
    var row_size: Int

    def values(self) -> Pointer[Scalar[Self.dtype], MutUntrackedOrigin]:
        """Where the memory would begin if the offsets of keys were those of their values."""
        return self.memory.unsafe_offset(self.num_layers * self.page_size * self.num_heads * self.row_size)

    def find(self, offsets: Pointer[mut=True, Int, _], row: Int, head: Int, first: Int, count: Int):
        """Writes the offsets in memory of the keys of `count` tokens."""
        var page = first // self.page_size
        var slot = first % self.page_size
        for i in range(count):
            var number = Int(self.table.unsafe_offset(row * self.table_width + page).unsafe_load())
            var token = (number * 2 * self.num_layers + self.layer) * self.page_size + slot
            offsets.unsafe_offset(i).unsafe_store((token * self.num_heads + head) * self.row_size)
            slot += 1
            if slot == self.page_size:
                slot = 0
                page += 1


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
