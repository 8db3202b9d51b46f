"""Rows of activations in float32 for products with blocks of quantized weights."""

from std.memory import bitcast

from .block_columns import GROUP, GroupRows
from .block_formats import BlockFormat, row_bytes
from .columns import COLUMNS, Column, FloatColumn, ScaleColumns, float_at

comptime CHAINS = 2
"""Sums of each row that grow side by side: one waits for its last product."""


struct FloatRows[F: BlockFormat](GroupRows):
    """A record for each group: its values; for formats with minima their sum."""

    comptime Format: BlockFormat = Self.F
    comptime UNIT = GROUP
    comptime SUM = GROUP * 4
    comptime RECORD_BYTES = Self.SUM + (4 if Self.F.HAS_MINIMA else 0)

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return row_bytes[Self.F](K)

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        for group in range(K // GROUP):
            var record = row.unsafe_offset(group * Self.RECORD_BYTES).unsafe_bitcast[Float32]()
            var values = x.unsafe_offset(group * GROUP).unsafe_load[width=GROUP]()
            record.unsafe_store(values)
            comptime if Self.F.HAS_MINIMA:
                record.unsafe_offset(GROUP).unsafe_store(values.reduce_add())

    @staticmethod
    @always_inline
    def add_products[
        M: Int, group: Int
    ](
        mut sums: Array[FloatColumn, M],
        x: Pointer[UInt8, _],
        starts: Array[Int, M],
        values: Array[Column, 8],
        scales: ScaleColumns,
    ):
        """Scales are applied to the sums of the weights' groups."""
        comptime parts = GROUP // Self.F.GROUP
        comptime for part in range(parts):
            var products = Array[FloatColumn, M * CHAINS](fill=FloatColumn(0))
            comptime for k in range(part * Self.F.GROUP, (part + 1) * Self.F.GROUP):
                var weights = floats_at[Self.F.OFFSET, k % 4](values[k // 4])
                comptime for m in range(M):
                    comptime place = k % CHAINS * M + m
                    products[place] = weights.fma(float_at(x, starts[m] + k * 4), products[place])
            comptime for m in range(M):
                sums[m] = (products[m] + products[M + m]).fma(scales.scales[group * parts + part], sums[m])
        comptime if Self.F.HAS_MINIMA:
            comptime for m in range(M):
                sums[m] = scales.minima[group].fma(-float_at(x, starts[m] + Self.SUM), sums[m])


@always_inline
def floats_at[offset: Int, byte: Int](words: Column) -> FloatColumn:
    """This byte of each word, less the offset: the last bits of 2 ** 23, from which 2 ** 23 is taken again, exactly."""
    var bits = words >> UInt32(8 * byte) & 255 | 0x4B000000
    return bitcast[DType.float32, COLUMNS](bits) - FloatColumn((1 << 23) + offset)
