"""Quantization of weights to the block formats of GGUF files, and checksums of them, on all cores."""

from max.algorithm import parallelize
from std.math import ceildiv

from blocks import BLOCK, write_q4_0, write_q4_1, write_q5_0, write_q5_1, write_q8_0
from checksum import FACTOR, checksum_bytes
from minima import write_q4_k, write_q5_k
from q6_k import write_q6_k
from values import are_finite, load_values

comptime SUPER_BLOCK = 256
comptime TASK_WEIGHTS = 1 << 16
comptime TASK_BYTES = 1 << 20
comptime NOT_FINITE = 1
comptime TOO_LARGE = 2


@export("quantize")
def quantize(
    target: Pointer[mut=True, UInt8, MutAnyOrigin],
    source: Pointer[mut=False, UInt8, ImmutAnyOrigin],
    count: Int,
    format: Int,
    is_bfloat16: Int,
) abi("C") -> Int:
    """Writes the blocks of `count` weights. Returns 0, or NOT_FINITE or TOO_LARGE if it can't.

    Formats have ggml's numbers.
    """
    if is_bfloat16 != 0:
        return quantize_to(target, source.unsafe_bitcast[BFloat16](), count, format)
    return quantize_to(target, source.unsafe_bitcast[Float32](), count, format)


def quantize_to[
    dtype: DType
](target: Pointer[mut=True, UInt8, _], source: Pointer[Scalar[dtype], _], count: Int, format: Int) -> Int:
    if format == 2:
        return quantize_all[dtype, 2, BLOCK, 18](target, source, count)
    if format == 3:
        return quantize_all[dtype, 3, BLOCK, 20](target, source, count)
    if format == 6:
        return quantize_all[dtype, 6, BLOCK, 22](target, source, count)
    if format == 7:
        return quantize_all[dtype, 7, BLOCK, 24](target, source, count)
    if format == 8:
        return quantize_all[dtype, 8, BLOCK, 34](target, source, count)
    if format == 12:
        return quantize_all[dtype, 12, SUPER_BLOCK, 144](target, source, count)
    if format == 13:
        return quantize_all[dtype, 13, SUPER_BLOCK, 176](target, source, count)
    return quantize_all[dtype, 14, SUPER_BLOCK, 210](target, source, count)


def quantize_all[
    dtype: DType, format: Int, size: Int, block_bytes: Int
](target: Pointer[mut=True, UInt8, _], source: Pointer[Scalar[dtype], _], count: Int) -> Int:
    """Quantizes parts of TASK_WEIGHTS on all cores."""
    comptime step = TASK_WEIGHTS // size
    var blocks = count // size
    var problems = List[Int](length=ceildiv(blocks, step), fill=0)
    var problem = problems.unsafe_ptr()

    def work(task: Int) {imm}:
        for block in range(task * step, min(task * step + step, blocks)):
            var found = quantize_block[dtype, format, size](
                target.unsafe_offset(block * block_bytes), source.unsafe_offset(block * size)
            )
            if found != 0:
                problem.unsafe_offset(task).unsafe_store(found)
                return

    parallelize(work, ceildiv(blocks, step))
    for found in problems:
        if found != 0:
            return found
    return 0


@always_inline
def quantize_block[
    dtype: DType, format: Int, size: Int
](target: Pointer[mut=True, UInt8, _], source: Pointer[Scalar[dtype], _]) -> Int:
    for i in range(0, size, BLOCK):
        if not are_finite[BLOCK](load_values[BLOCK](source, i)):
            return NOT_FINITE
    var fits: Bool
    comptime if format == 2:
        fits = write_q4_0(target, load_values[BLOCK](source, 0))
    elif format == 3:
        fits = write_q4_1(target, load_values[BLOCK](source, 0))
    elif format == 6:
        fits = write_q5_0(target, load_values[BLOCK](source, 0))
    elif format == 7:
        fits = write_q5_1(target, load_values[BLOCK](source, 0))
    elif format == 8:
        fits = write_q8_0(target, load_values[BLOCK](source, 0))
    elif format == 12:
        fits = write_q4_k(target, source)
    elif format == 13:
        fits = write_q5_k(target, source)
    else:
        fits = write_q6_k(target, source)
    return 0 if fits else TOO_LARGE


@export("checksum")
def checksum(source: Pointer[mut=False, UInt8, ImmutAnyOrigin], size: Int) abi("C") -> UInt64:
    """The checksum of a range of bytes."""
    var parts = List[UInt64](length=ceildiv(size, TASK_BYTES), fill=0)
    var part = parts.unsafe_ptr()

    def work(task: Int) {imm}:
        var start = task * TASK_BYTES
        var found = checksum_bytes(source.unsafe_offset(start), min(TASK_BYTES, size - start))
        part.unsafe_offset(task).unsafe_store(found)

    parallelize(work, len(parts))
    var total = UInt64(size)
    for value in parts:
        total = total * FACTOR + value
    return total
