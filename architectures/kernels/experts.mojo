"""Products of rows with the weights of the experts that each was sent to, on CPU."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_up, ceildiv
from std.sys.info import num_physical_cores

from .gemm import gemm
from .gemv import GEMV_ROWS, gemv
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
        var R = y.dim_size(0)
        var N = y.dim_size(1)
        var K = x.dim_size(1)
        if R == 0:
            return
        var sorted_rows = SortedRows(experts.unsafe_ptr(), R, w.dim_size(0) // N)
        var gathered = uninitialized(align_up(R * K, WIDTH))
        var products = uninitialized(align_up(R * N, WIDTH))
        var x_rows = gathered.unsafe_ptr().unsafe_bitcast[Float32]()
        var y_rows = products.unsafe_ptr().unsafe_bitcast[Float32]()
        var repeats = R // x.dim_size(0)
        var xp = x.unsafe_ptr()
        var yp = y.unsafe_ptr()
        for place in range(R):
            copy(x_rows.unsafe_offset(place * K), xp.unsafe_offset(sorted_rows.order[place] // repeats * K), K)
        multiply_experts(y_rows, x_rows, w.unsafe_ptr(), sorted_rows.starts, N, K)
        for place in range(R):
            copy(yp.unsafe_offset(sorted_rows.order[place] * N), y_rows.unsafe_offset(place * N), N)


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
    dtype: DType
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Scalar[dtype], _],
    starts: List[Int],
    N: Int,
    K: Int,
):
    """The products of sorted rows: one expert after the other where it has many, all at once where they have few."""
    var num_experts = len(starts) - 1
    for e in range(num_experts):
        var M = starts[e + 1] - starts[e]
        if M > GEMV_ROWS:
            gemm(y.unsafe_offset(starts[e] * N), x.unsafe_offset(starts[e] * K), w.unsafe_offset(e * N * K), M, N, K)
    var num_tasks = num_physical_cores()
    var share = ceildiv(N, num_tasks)

    def task(t: Int) {imm}:
        var first = t * share
        var count = max(0, min(share, N - first))
        for e in range(num_experts):
            var M = starts[e + 1] - starts[e]
            if 0 < M <= GEMV_ROWS:
                gemv(
                    y.unsafe_offset(starts[e] * N + first),
                    x.unsafe_offset(starts[e] * K),
                    w.unsafe_offset((e * N + first) * K),
                    M,
                    count,
                    N,
                    K,
                )

    parallelize(task, num_tasks)
