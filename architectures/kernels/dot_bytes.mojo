"""Sums of products of bytes, by the best instructions of the target."""

from std.memory import bitcast
from std.sys.info import CompilationTarget
from std.sys.intrinsics import llvm_intrinsic

from .vectors import IS_512, WIDTH

comptime HAS_PAIRS = CompilationTarget.has_avx2()
comptime HAS_VNNI = CompilationTarget._has_feature["avx512vnni" if IS_512 else "avxvnni"]()
comptime LANES = 16 if IS_512 else min(WIDTH, 8)
"""Sums in a register."""
comptime INSTRUCTIONS: StaticString = (
    ("avx512-vnni" if HAS_VNNI else "avx512") if IS_512 else
    "avx-vnni" if HAS_VNNI else "avx2" if HAS_PAIRS else "portable"
)
"""What the products of bytes are computed with."""
comptime Words = SIMD[DType.int32, LANES]
comptime UnsignedBytes = SIMD[DType.uint8, LANES * 4]
comptime SignedBytes = SIMD[DType.int8, LANES * 4]


@always_inline
def dot_bytes[
    limit: Int, lanes: Int
](
    sums: SIMD[DType.int32, lanes], unsigned: SIMD[DType.uint8, lanes * 4], signed: SIMD[DType.int8, lanes * 4]
) -> SIMD[DType.int32, lanes]:
    """Sums, each plus the products of its four bytes; of the unsigned ones none is over `limit`, no signed one -128."""
    var result = sums
    comptime for first in range(0, lanes, LANES):
        var part = dot_register[limit](
            sums.slice[LANES, offset=first](),
            unsigned.slice[LANES * 4, offset=first * 4](),
            signed.slice[LANES * 4, offset=first * 4](),
        )
        result = result.insert[offset=first](part)
    return result


@always_inline
def dot_register[limit: Int](sums: Words, unsigned: UnsignedBytes, signed: SignedBytes) -> Words:
    """The same for one register."""
    comptime if HAS_VNNI:
        comptime name = "llvm.x86.avx512.vpdpbusd.512" if LANES == 16 else "llvm.x86.avx512.vpdpbusd.256"
        return llvm_intrinsic[name, Words](sums, unsigned, signed)
    elif not HAS_PAIRS:
        return dot_words(sums, unsigned, signed)
    elif limit <= 127:
        return sums + dot_pairs(unsigned, signed)
    else:  # the sum of two products must fit into 16 bits
        return sums + dot_pairs(unsigned & 127, signed) + dot_pairs(unsigned & 128, signed)


@always_inline
def dot_pairs(unsigned: UnsignedBytes, signed: SignedBytes) -> Words:
    """Sums of pairs in 16 bits, then of pairs of these."""
    comptime Halves = SIMD[DType.int16, LANES * 2]
    comptime bytes = "llvm.x86.avx512.pmaddubs.w.512" if LANES == 16 else "llvm.x86.avx2.pmadd.ub.sw"
    comptime halves = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
    return llvm_intrinsic[halves, Words](llvm_intrinsic[bytes, Halves](unsigned, signed), Halves(1))


@always_inline
def dot_words(sums: Words, unsigned: UnsignedBytes, signed: SignedBytes) -> Words:
    """The bytes of each word by shifts, on any CPU."""
    var left = bitcast[DType.uint32, LANES](unsigned)
    var right = bitcast[DType.int32, LANES](signed)
    var result = sums
    comptime for shift in range(0, 32, 8):
        var byte = left >> UInt32(shift) & 255
        result += byte.cast[DType.int32]() * (right << Int32(24 - shift) >> 24)
    return result
