"""Products with quantized weights [N, bytes of a row], as GGUF files store them, on CPU."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import ceildiv
from std.sys.info import num_physical_cores

from .block_formats import row_bytes
from .byte_blocks import ByteBlocks
from .dequantize import dequantize
from .experts import multiply_by_experts
from .float_blocks import FloatBlocks
from .formats import FormatNamed, check_name
from .gemm import SERIAL
from .matmul import multiply


@extensibility.register("graph_pipelines.block_matmul")
struct BlockMatmul:
    @staticmethod
    def execute[
        format: StaticString, int8_activations: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ dequantized(w) [N, K].T, with x in float32 or quantized in groups of 32."""
        check_name[format]()
        var M = x.dim_size(0)
        var N = w.dim_size(0)
        var K = x.dim_size(1)
        comptime if int8_activations:
            multiply[ByteBlocks[FormatNamed[format]]](y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), M, N, K)
        else:
            multiply[FloatBlocks[FormatNamed[format]]](y.unsafe_ptr(), x.unsafe_ptr(), w.unsafe_ptr(), M, N, K)


@extensibility.register("graph_pipelines.block_expert_matmul")
struct BlockExpertMatmul:
    @staticmethod
    def execute[
        format: StaticString, int8_activations: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        experts: InputTensor[dtype=DType.int32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Y[r] = x[r // (R / rows of x)] @ dequantized(w)[experts[r]].T for experts stacked in w [E * N, ...]."""
        check_name[format]()
        var yp = y.unsafe_ptr()
        var xp = x.unsafe_ptr()
        var wp = w.unsafe_ptr()
        var ep = experts.unsafe_ptr()
        var R = y.dim_size(0)
        var M = x.dim_size(0)
        var w_rows = w.dim_size(0)
        var N = y.dim_size(1)
        var K = x.dim_size(1)
        comptime if int8_activations:
            multiply_by_experts[ByteBlocks[FormatNamed[format]]](yp, xp, wp, ep, R, M, w_rows, N, K)
        else:
            multiply_by_experts[FloatBlocks[FormatNamed[format]]](yp, xp, wp, ep, R, M, w_rows, N, K)


@extensibility.register("graph_pipelines.block_gather")
struct BlockGather:
    @staticmethod
    def execute[
        format: StaticString, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        rows: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [T, K] = dequantized(w)[rows]."""
        check_name[format]()
        var K = y.dim_size(1)
        var yp = y.unsafe_ptr()
        var wp = w.unsafe_ptr()
        var numbers = rows.unsafe_ptr()
        var T = y.dim_size(0)
        var num_tasks = num_physical_cores() if T * K > SERIAL else 1
        var share = ceildiv(T, num_tasks)

        def task(t: Int) {imm}:
            for place in range(t * share, min((t + 1) * share, T)):
                var row = Int(numbers.unsafe_offset(place).unsafe_load())
                var blocks = wp.unsafe_offset(row * row_bytes[FormatNamed[format]](K))
                dequantize[FormatNamed[format]](yp.unsafe_offset(place * K), blocks, K)

        if num_tasks == 1:
            task(0)
        else:
            parallelize(task, num_tasks)


@extensibility.register("graph_pipelines.reference_block_matmul")
struct ReferenceBlockMatmul:
    @staticmethod
    def execute[
        format: StaticString, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.uint8, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [M, N] = x [M, K] @ dequantized(w) [N, K].T, summed in float64 and rounded once."""
        check_name[format]()
        var K = x.dim_size(1)
        var xp = x.unsafe_ptr()
        var yp = y.unsafe_ptr()
        var weights = List[Float32](length=K, fill=0)
        for n in range(y.dim_size(1)):
            var blocks = w.unsafe_ptr().unsafe_offset(n * row_bytes[FormatNamed[format]](K))
            dequantize[FormatNamed[format]](weights.unsafe_ptr(), blocks, K)
            for m in range(y.dim_size(0)):
                var total = Float64(0)
                for k in range(K):
                    var input = xp.unsafe_offset(m * K + k).unsafe_load().cast[DType.float64]()
                    total += weights[k].cast[DType.float64]() * input
                yp.unsafe_offset(m * y.dim_size(1) + n).unsafe_store(total.cast[DType.float32]())
