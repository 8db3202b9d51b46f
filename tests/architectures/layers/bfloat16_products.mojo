"""Products of bfloat16, in a library of their own that tests compile for other CPUs than MAX compiles for."""

from kernels.bfloat16 import Product
from kernels.matmul import multiply
from kernels.words import INSTRUCTIONS

comptime Floats = Pointer[Float32, MutAnyOrigin]
comptime Bytes = Pointer[UInt8, MutAnyOrigin]


@export("instructions")
def instructions(name: Bytes) abi("C"):
    for i in range(INSTRUCTIONS.byte_length()):
        name.unsafe_offset(i).unsafe_store(INSTRUCTIONS.as_bytes()[i])


@export("multiply")
def multiply_bfloat16(y: Floats, x: Floats, w: Bytes, M: Int, N: Int, K: Int) abi("C"):
    multiply[Product](y, x, w, M, N, K)
