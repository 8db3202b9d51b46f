"""Products of a few rows with 16 rows of blocks at a time, whose values stand side by side in vectors.

A product then needs no sum across lanes, and each row's scale is applied once for a group of 16 outputs.
"""

from std.sys.intrinsics import PrefetchOptions, prefetch

from .block_formats import BlockFormat
from .columns import COLUMNS, Column, FloatColumn, ScaleColumns
from .product import PreparedRows, prepared_bytes
from .vectors import LINE_BYTES, uninitialized

comptime GROUP = 32
"""Values of a row in a record."""
comptime MR = 8
"""Most rows of x that are multiplied at a time."""
comptime PREFETCH_BYTES = 16384
"""Distance between the next 16 rows and the weights that are prefetched: where rows are short, they are too near."""


trait GroupRows(PreparedRows):
    """Rows whose records are multiplied with a group of the blocks' values each."""

    comptime Format: BlockFormat

    @staticmethod
    def add_products[
        M: Int, group: Int
    ](
        mut sums: Array[FloatColumn, M],
        x: Pointer[UInt8, _],
        starts: Array[Int, M],
        values: Array[Column, 8],
        scales: ScaleColumns,
    ):
        """Adds the products of this group of a block with the records of M rows, which start so many bytes after x."""
        ...


def multiply_columns[
    R: GroupRows
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The first `count` outputs of N for M prepared rows, on one core: 16 at a time.

    The last 16 are computed together, some of them again.
    """
    if count < COLUMNS:
        multiply_padded[R](y, x, w, M, count, N, K)
        return
    for n in range(0, count, COLUMNS):
        var first = min(n, count - COLUMNS)
        multiply_sixteen[R](y.unsafe_offset(first), x, w.unsafe_offset(first * R.row_bytes(K)), M, N, K)


def multiply_padded[
    R: GroupRows
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    M: Int,
    count: Int,
    N: Int,
    K: Int,
):
    """The same for less than 16 outputs; the last row of the weight stands for those that are not there."""
    var stride = R.row_bytes(K)
    var rows = List[UInt8](unsafe_uninit_length=COLUMNS * stride)
    for row in range(COLUMNS):
        var source = w.unsafe_offset(min(row, count - 1) * stride)
        for i in range(stride):
            rows[row * stride + i] = source.unsafe_offset(i).unsafe_load()
    var products = uninitialized(M * COLUMNS)
    var sixteen = products.unsafe_ptr().unsafe_bitcast[Float32]()
    multiply_sixteen[R](sixteen, x, rows.unsafe_ptr(), M, COLUMNS, K)
    for m in range(M):
        for n in range(count):
            y.unsafe_offset(m * N + n).unsafe_store(sixteen.unsafe_offset(m * COLUMNS + n).unsafe_load())
    _ = rows^
    _ = products^


def multiply_sixteen[
    R: GroupRows
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """16 outputs for M prepared rows in groups of up to MR, of which the first brings the weights into the cache."""
    for first in range(0, M, MR):
        var count = min(MR, M - first)
        comptime for rows in [1, 2, 4, MR]:
            if rows // 2 < count <= rows:
                var x_rows = x.unsafe_offset(first * prepared_bytes[R](K))
                column_kernel[R, rows](y.unsafe_offset(first * N), x_rows, w, count, N, K)


def column_kernel[
    R: GroupRows, rows: Int
](y: Pointer[mut=True, Float32, _], x: Pointer[UInt8, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """The same for up to `rows` rows; the last of M stands for those that are not there."""
    comptime F = R.Format
    var stride = R.row_bytes(K)
    var sums = Array[FloatColumn, rows](fill=FloatColumn(0))
    var starts = Array[Int, rows](fill=0)
    comptime for row in range(rows):
        starts[row] = min(row, M - 1) * prepared_bytes[R](K)
    for b in range(K // F.BLOCK):
        var block = w.unsafe_offset(b * F.BLOCK_BYTES)
        var scales = F.scale_columns(block, stride)
        comptime for group in range(F.BLOCK // GROUP):
            var part = b * F.BLOCK // GROUP + group
            prefetch_part[F](w.unsafe_offset(COLUMNS * stride), part)
            var values = F.value_columns[group](block, stride)
            R.add_products[rows, group](sums, x.unsafe_offset(part * R.RECORD_BYTES), starts, values, scales)
    comptime for row in range(rows):
        if row < M:
            y.unsafe_offset(row * N).unsafe_store(sums[row])


@always_inline
def prefetch_part[F: BlockFormat](next: Pointer[UInt8, _], part: Int):
    """Brings weights into L2, as many as a group of 16 rows has: the rows follow each other, and so do the parts."""
    comptime size = COLUMNS * F.BLOCK_BYTES // (F.BLOCK // GROUP)
    comptime for line in range(0, size, LINE_BYTES):
        prefetch[PrefetchOptions().for_read().medium_locality().to_data_cache()](
            next.unsafe_offset(PREFETCH_BYTES + part * size + line)
        )
