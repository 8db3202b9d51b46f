"""Matrix products on CPU. M rows of activations, N outputs, K inputs."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.atomic import Atomic
from std.math import align_up, ceildiv
from std.sys.info import num_physical_cores

from .columns import COLUMNS
from .dense import Dense
from .gemm import gemm
from .product import Product, prepared_bytes
from .vectors import uninitialized

comptime PIECE_BYTES = 1 << 16
"""Least weights that a core takes at a time."""


@extensibility.register("graph_pipelines.matmul")
struct MatmulTransposed:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ w [N, K].T; float32 or bfloat16 weights, float32 for all else."""
        var weights = w.unsafe_ptr().unsafe_bitcast[UInt8]()
        multiply[Dense[dtype]](y.unsafe_ptr(), x.unsafe_ptr(), weights, x.dim_size(0), w.dim_size(0), x.dim_size(1))


def multiply[
    P: Product
](y: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """Y [M, N] = x [M, K] @ w [N, K].T."""
    if M > P.GEMV_ROWS:
        gemm[P](y, x, w, M, N, K)
        return
    var size = prepared_bytes[P.Rows](K)
    var memory = uninitialized(M * size // 4)
    var rows = memory.unsafe_ptr().unsafe_bitcast[UInt8]()
    for m in range(M):
        P.Rows.prepare_row(rows.unsafe_offset(m * size), x.unsafe_offset(m * K), K)
    multiply_few[P](y, rows, w, M, N, K)
    _ = memory^


def multiply_few[
    P: Product
](y: Pointer[mut=True, Float32, _], rows: Pointer[UInt8, _], w: Pointer[UInt8, _], M: Int, N: Int, K: Int):
    """The same for a few prepared rows; each core takes the next piece of the outputs until none is left.

    Large pieces are read fastest; small ones at the end make up for a core that started late or was disturbed.
    """
    var num_tasks = num_physical_cores()
    var least = ceildiv(PIECE_BYTES, P.Rows.row_bytes(K))
    var large = align_up(ceildiv(N * 3, num_tasks * 4), COLUMNS)
    var small = align_up(max(least, ceildiv(N, num_tasks * 32)), COLUMNS)
    var next_piece = Int64(0)
    var counter = Pointer(to=next_piece)

    def work(_core: Int) {imm}:
        while True:
            var piece = Int(Atomic[Int64].fetch_add(counter, 1))
            var first = min(piece, num_tasks) * large + max(0, piece - num_tasks) * small
            if first >= N:
                return
            var count = min(large if piece < num_tasks else small, N - first)
            P.gemv(y.unsafe_offset(first), rows, w.unsafe_offset(first * P.Rows.row_bytes(K)), M, count, N, K)

    parallelize(work, num_tasks)
    _ = next_piece
