"""Products of rows with the weights of the experts that each was sent to, on CPU."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_up, ceildiv
from std.sys.info import num_physical_cores

from .dense import Dense
from .gemm import gemm
from .product import Product, prepared_bytes
from .vectors import WIDTH, copy, uninitialized


@extensibility.register("graph_pipelines.expert_matmul")
struct ExpertMatmul:
    @staticmethod
    def execute[
        dtype: DType, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=dtype, rank=2, ...],
        experts: InputTensor[dtype=DType.int32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Y[r] = x[r // (R / rows of x)] @ w[experts[r]].T for R rows, of experts that are stacked in w [E * N, K].

        The rows of an expert are gathered, so that its weights are read once for all of them.
        """
        multiply_by_experts[Dense[dtype]](
            y.unsafe_ptr(),
            x.unsafe_ptr(),
            w.unsafe_ptr().unsafe_bitcast[UInt8](),
            experts.unsafe_ptr(),
            y.dim_size(0),
            x.dim_size(0),
            w.dim_size(0),
            y.dim_size(1),
            x.dim_size(1),
        )


def multiply_by_experts[
    P: Product
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[UInt8, _],
    experts: Pointer[Int32, _],
    R: Int,
    M: Int,
    w_rows: Int,
    N: Int,
    K: Int,
):
    """Gathers the R rows of x [M, K], multiplies them by experts and puts the products where they belong."""
    if R == 0:
        return
    var sorted_rows = SortedRows(experts, R, w_rows // N)
    var gathered = uninitialized(align_up(R * K, WIDTH))
    var products = uninitialized(align_up(R * N, WIDTH))
    var x_rows = gathered.unsafe_ptr().unsafe_bitcast[Float32]()
    var y_rows = products.unsafe_ptr().unsafe_bitcast[Float32]()
    for place in range(R):
        copy(x_rows.unsafe_offset(place * K), x.unsafe_offset(sorted_rows.order[place] // (R // M) * K), K)
    multiply_experts[P](y_rows, x_rows, w, sorted_rows.starts, N, K)
    for place in range(R):
        copy(y.unsafe_offset(sorted_rows.order[place] * N), y_rows.unsafe_offset(place * N), N)


struct SortedRows:
    """The rows in the order of their experts: those of expert e are `order[starts[e] : starts[e + 1]]`."""

    var starts: List[Int]
    var order: List[Int]

    def __init__(out self, experts: Pointer[Int32, _], R: Int, num_experts: Int):
        self.starts = List[Int](length=num_experts + 1, fill=0)
        for r in range(R):
            self.starts[Int(experts.unsafe_offset(r).unsafe_load()) + 1] += 1
        for e in range(num_experts):
            self.starts[e + 1] += self.starts[e]
        self.order = List[Int](length=R, fill=0)
        var next_place = self.starts.copy()
        for r in range(R):
            var e = Int(experts.unsafe_offset(r).unsafe_load())
            self.order[next_place[e]] = r
            next_place[e] += 1


def multiply_experts[
    P: Product
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[UInt8, _],
    starts: List[Int],
    N: Int,
    K: Int,
):
    """The products of sorted rows: one expert after the other where it has many, all at once where they have few."""
    var num_experts = len(starts) - 1
    for e in range(num_experts):
        var M = starts[e + 1] - starts[e]
        if M > P.GEMV_ROWS:
            var weights = w.unsafe_offset(e * N * P.Rows.row_bytes(K))
            gemm[P](y.unsafe_offset(starts[e] * N), x.unsafe_offset(starts[e] * K), weights, M, N, K)
    var size = prepared_bytes[P.Rows](K)
    var memory = uninitialized(starts[num_experts] * size // 4)
    var rows = memory.unsafe_ptr().unsafe_bitcast[UInt8]()
    for e in range(num_experts):
        if starts[e + 1] - starts[e] <= P.GEMV_ROWS:
            for m in range(starts[e], starts[e + 1]):
                P.Rows.prepare_row(rows.unsafe_offset(m * size), x.unsafe_offset(m * K), K)
    multiply_few_rows[P](y, rows, w, starts, N, K)
    _ = memory^


def multiply_few_rows[
    P: Product
](
    y: Pointer[mut=True, Float32, _],
    rows: Pointer[UInt8, _],
    w: Pointer[UInt8, _],
    starts: List[Int],
    N: Int,
    K: Int,
):
    """The products of the experts with few rows, which are prepared."""
    var num_tasks = num_physical_cores()
    var share = ceildiv(N, num_tasks)

    def task(t: Int) {imm}:
        var first = t * share
        var count = max(0, min(share, N - first))
        for e in range(len(starts) - 1):
            var M = starts[e + 1] - starts[e]
            if 0 < M <= P.GEMV_ROWS:
                P.gemv(
                    y.unsafe_offset(starts[e] * N + first),
                    rows.unsafe_offset(starts[e] * prepared_bytes[P.Rows](K)),
                    w.unsafe_offset((e * N + first) * P.Rows.row_bytes(K)),
                    M,
                    count,
                    N,
                    K,
                )

    parallelize(task, num_tasks)
