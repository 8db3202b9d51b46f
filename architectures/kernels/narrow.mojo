"""Float32 numbers rounded to other types."""

from std.memory import bitcast
from std.sys.info import CompilationTarget

from .vectors import WIDTH

comptime HAS_BFLOAT16 = WIDTH == 16 and CompilationTarget._has_feature["avx512bf16"]()


@always_inline
def narrow[dtype: DType, size: Int](values: SIMD[DType.float32, size]) -> SIMD[dtype, size]:
    """The nearest numbers of a type, of two equally near ones the even one.

    A cast to bfloat16 is a function call for each number where the CPU has no instruction for it.
    """
    comptime if dtype == DType.bfloat16 and not HAS_BFLOAT16:
        var bits = bitcast[DType.uint32, size](values)
        var high = bits >> 16
        var rounded = (bits + 0x7FFF + (high & 1)) >> 16
        var is_nan = (bits & 0x7FFFFFFF).gt(0x7F800000)
        var result = is_nan.select(high | 64, rounded)  # rounding could make a NaN infinite
        return bitcast[dtype, size](result.cast[DType.uint16]())
    else:
        return values.cast[dtype]()
