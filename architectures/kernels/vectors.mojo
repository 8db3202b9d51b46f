"""Vectors of float32 as wide as the CPU's registers, and memory for them."""

from std.bit import log2_floor
from std.math import align_down, ceildiv
from std.sys.info import CompilationTarget, simd_width_of

comptime WIDTH = simd_width_of[DType.float32]()
comptime IS_512 = WIDTH == 16 and CompilationTarget._has_feature["avx512bw"]()
"""Whether vectors of 64 bytes and 32 words can be computed with."""
comptime LINE_BYTES = 64
"""Of the caches, on all CPUs that are supported."""
comptime Vector = SIMD[DType.float32, WIDTH]
comptime HAS_32_REGISTERS = WIDTH >= 16 or not CompilationTarget.is_x86()


def zeros(count: Int) -> List[Vector]:
    """A multiple of WIDTH; no vector of them crosses a line of the cache, which would halve the speed."""
    return List[Vector](length=count // WIDTH, fill=Vector(0))


def uninitialized(count: Int) -> List[Vector]:
    """Memory for any number of values, as `zeros` gives it, but not touched yet."""
    return List[Vector](unsafe_uninit_length=ceildiv(count, WIDTH))


@always_inline
def load(source: Pointer[Float32, _], offset: Int) -> Vector:
    return source.unsafe_offset(offset).unsafe_load[width=WIDTH]()


@always_inline
def store(target: Pointer[mut=True, Float32, _], offset: Int, values: Vector):
    target.unsafe_offset(offset).unsafe_store(values)


@always_inline
def copy(target: Pointer[mut=True, Float32, _], source: Pointer[Float32, _], count: Int):
    var whole = count - count % WIDTH
    for i in range(0, whole, WIDTH):
        store(target, i, load(source, i))
    for i in range(whole, count):
        target.unsafe_offset(i).unsafe_store(source.unsafe_offset(i).unsafe_load())


@always_inline
def widen[dtype: DType](target: Pointer[mut=True, Float32, _], source: Pointer[Scalar[dtype], _], count: Int):
    """Copies values as float32, then zeros to the end of the vector."""
    var whole = align_down(count, WIDTH)
    for i in range(0, whole, WIDTH):
        store(target, i, source.unsafe_offset(i).unsafe_load[width=WIDTH]().cast[DType.float32]())
    if whole < count:
        var rest = Vector(0)
        for i in range(whole, count):
            rest[i - whole] = source.unsafe_offset(i).unsafe_load().cast[DType.float32]()
        store(target, whole, rest)


@always_inline
def transpose[size: Int = WIDTH](mut square: Array[SIMD[DType.float32, size], size]):
    """Each round of interleaving moves the highest bit of the row's number to the lowest of the column's."""
    comptime for _ in range(log2_floor(size)):
        var next = Array[SIMD[DType.float32, size], size](fill=SIMD[DType.float32, size](0))
        comptime for i in range(size // 2):
            var both = square[i].interleave(square[i + size // 2])
            next[2 * i] = both.slice[size, offset=0]()
            next[2 * i + 1] = both.slice[size, offset=size]()
        square = next^
