"""Products with blocks of weights, in a library of their own that tests compile for other CPUs than MAX compiles for."""

from kernels.byte_blocks import ByteBlocks
from kernels.dot_bytes import INSTRUCTIONS
from kernels.float_blocks import FloatBlocks
from kernels.formats import FormatNamed
from kernels.matmul import multiply
from kernels.product import Product

comptime Floats = Pointer[Float32, MutAnyOrigin]
comptime Bytes = Pointer[UInt8, MutAnyOrigin]


@export("instructions")
def instructions(name: Bytes) abi("C"):
    for i in range(INSTRUCTIONS.byte_length()):
        name.unsafe_offset(i).unsafe_store(INSTRUCTIONS.as_bytes()[i])


@export("q8_0")
def multiply_q8_0(y: Floats, x: Floats, w: Bytes, M: Int, N: Int, K: Int) abi("C"):
    multiply[ByteBlocks[FormatNamed["q8_0"]]](y, x, w, M, N, K)


@export("q4_k")
def multiply_q4_k(y: Floats, x: Floats, w: Bytes, M: Int, N: Int, K: Int) abi("C"):
    multiply[ByteBlocks[FormatNamed["q4_k"]]](y, x, w, M, N, K)


@export("q6_k")
def multiply_q6_k(y: Floats, x: Floats, w: Bytes, M: Int, N: Int, K: Int) abi("C"):
    multiply[ByteBlocks[FormatNamed["q6_k"]]](y, x, w, M, N, K)


@export("q5_0")
def multiply_q5_0(y: Floats, x: Floats, w: Bytes, M: Int, N: Int, K: Int) abi("C"):
    multiply[FloatBlocks[FormatNamed["q5_0"]]](y, x, w, M, N, K)
