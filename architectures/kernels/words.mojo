"""Words of packed rows and of tiles: the values in each lane of a vector, and sums of their products."""

from std.memory import bitcast
from std.sys.intrinsics import llvm_intrinsic

from .narrow import HAS_BFLOAT16, narrow
from .vectors import WIDTH, Vector, store

comptime INSTRUCTIONS: StaticString = "avx512-bf16" if HAS_BFLOAT16 else "portable"
"""What products with activations in bfloat16 are computed with."""


trait Words:
    """What a word of 32 bits holds. VALUES: how many values along K. ROUNDS: whether they are rounded to bfloat16."""

    comptime VALUES: Int
    comptime ROUNDS: Bool

    @staticmethod
    def pack[dtype: DType](values: SIMD[dtype, WIDTH * Self.VALUES]) -> Vector:
        """Words of these values."""
        ...

    @staticmethod
    def multiply_add(sums: Vector, a: Vector, b: Vector) -> Vector:
        """Sums, each plus the products of the values in its words."""
        ...


struct Floats(Words):
    """A float32 in each word."""

    comptime VALUES = 1
    comptime ROUNDS = False

    @staticmethod
    @always_inline
    def pack[dtype: DType](values: SIMD[dtype, WIDTH * Self.VALUES]) -> Vector:
        return rebind[Vector](values.cast[DType.float32]())

    @staticmethod
    @always_inline
    def multiply_add(sums: Vector, a: Vector, b: Vector) -> Vector:
        return a.fma(b, sums)


struct RoundedFloats(Words):
    """The same, of values that are rounded to bfloat16: what CPUs without instructions for it multiply as fast."""

    comptime VALUES = 1
    comptime ROUNDS = True

    @staticmethod
    @always_inline
    def pack[dtype: DType](values: SIMD[dtype, WIDTH * Self.VALUES]) -> Vector:
        comptime if dtype == DType.bfloat16:
            return rebind[Vector](values.cast[DType.float32]())
        else:
            var rounded = narrow[DType.bfloat16, WIDTH](rebind[Vector](values.cast[DType.float32]()))
            return rounded.cast[DType.float32]()

    @staticmethod
    @always_inline
    def multiply_add(sums: Vector, a: Vector, b: Vector) -> Vector:
        return a.fma(b, sums)


struct Pairs(Words):
    """Two values in bfloat16 in each word, by AVX512-BF16: products are exact, sums are in float32.

    Its instructions take numbers below 2 ** -126, in sums too, as zeros.
    """

    comptime VALUES = 2
    comptime ROUNDS = True

    @staticmethod
    @always_inline
    def pack[dtype: DType](values: SIMD[dtype, WIDTH * Self.VALUES]) -> Vector:
        return bitcast[DType.float32, WIDTH](values.cast[DType.bfloat16]())

    @staticmethod
    @always_inline
    def multiply_add(sums: Vector, a: Vector, b: Vector) -> Vector:
        return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Vector](
            sums, bitcast[DType.bfloat16, WIDTH * 2](a), bitcast[DType.bfloat16, WIDTH * 2](b)
        )


comptime BFloat16Words: Words = Pairs if HAS_BFLOAT16 else RoundedFloats


@always_inline
def load_words[W: Words, dtype: DType](source: Pointer[Scalar[dtype], _]) -> Vector:
    return W.pack(source.unsafe_load[width = WIDTH * W.VALUES]())


@always_inline
def load_last_words[W: Words, dtype: DType](source: Pointer[Scalar[dtype], _], count: Int) -> Vector:
    """Words of `count` values, then zeros."""
    var values = SIMD[dtype, WIDTH * W.VALUES](0)
    for i in range(count):
        values[i] = source.unsafe_offset(i).unsafe_load()
    return W.pack(values)


@always_inline
def copy_words[
    W: Words, dtype: DType
](target: Pointer[mut=True, Float32, _], source: Pointer[Scalar[dtype], _], count: Int):
    """Copies `count` values as words, then zeros to the end of the vector."""
    comptime step = WIDTH * W.VALUES
    var whole = count - count % step
    for i in range(0, whole, step):
        store(target, i // W.VALUES, load_words[W](source.unsafe_offset(i)))
    if whole < count:
        store(target, whole // W.VALUES, load_last_words[W](source.unsafe_offset(whole), count - whole))
