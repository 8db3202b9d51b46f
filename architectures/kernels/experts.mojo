"""Products of rows with the weights of the experts that each was sent to, on CPU."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys.info import num_physical_cores

from .matmul import WIDTH, multiply_part


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
        var repeats = R // x.dim_size(0)
        var num_experts = w.dim_size(0) // N
        var starts = List[Int](length=num_experts + 1, fill=0)
        for r in range(R):
            starts[Int(experts[r]) + 1] += 1
        for e in range(num_experts):
            starts[e + 1] += starts[e]
        var order = List[Int](length=R, fill=0)
        var next_place = starts.copy()
        for r in range(R):
            var e = Int(experts[r])
            order[next_place[e]] = r
            next_place[e] += 1

        var gathered = List[Float32](length=R * K, fill=0)
        var products = List[Float32](length=R * N, fill=0)
        var gathered_p = gathered.unsafe_ptr()
        var products_p = products.unsafe_ptr()
        var xp = x.unsafe_ptr()
        var wp = w.unsafe_ptr()
        var yp = y.unsafe_ptr()
        for place in range(R):
            copy(gathered_p.unsafe_offset(place * K), xp.unsafe_offset(order[place] // repeats * K), K)
        var num_tasks = num_physical_cores()
        var share = ceildiv(N, num_tasks)

        def task(t: Int) {imm}:
            var first = t * share
            var count = max(0, min(share, N - first))
            for e in range(num_experts):
                var M = starts[e + 1] - starts[e]
                if M > 0:
                    multiply_part(
                        products_p.unsafe_offset(starts[e] * N + first),
                        gathered_p.unsafe_offset(starts[e] * K),
                        wp.unsafe_offset((e * N + first) * K),
                        M,
                        count,
                        N,
                        K,
                    )

        parallelize(task, num_tasks)
        for place in range(R):
            copy(yp.unsafe_offset(order[place] * N), products_p.unsafe_offset(place * N), N)


@always_inline
def copy(target: Pointer[mut=True, Float32, _], source: Pointer[Float32, _], count: Int):
    var whole = count - count % WIDTH
    for i in range(0, whole, WIDTH):
        target.unsafe_offset(i).unsafe_store(source.unsafe_offset(i).unsafe_load[width=WIDTH]())
    for i in range(whole, count):
        target.unsafe_offset(i).unsafe_store(source.unsafe_offset(i).unsafe_load())
