"""Rows of activations for a GEMV with weights of plain floating point."""

from std.sys.info import size_of

from .gemv import NR, PreparedRows
from .vectors import HAS_32_REGISTERS, WIDTH, load
from .words import Words, copy_words, load_words


struct DenseRows[dtype: DType, W: Words](PreparedRows):
    """Rows of words, for weights of a type that become words as they are read."""

    comptime UNIT = WIDTH * Self.W.VALUES
    comptime UNIT_BYTES = Self.UNIT * size_of[Self.dtype]()
    comptime RECORD_BYTES = WIDTH * 4
    comptime MR = 6 if HAS_32_REGISTERS else 2
    comptime LANES = WIDTH

    @staticmethod
    @always_inline
    def row_bytes(K: Int) -> Int:
        return K * size_of[Self.dtype]()

    @staticmethod
    def prepare_row(row: Pointer[mut=True, UInt8, _], x: Pointer[Float32, _], K: Int):
        copy_words[Self.W](row.unsafe_bitcast[Float32](), x, K)

    @staticmethod
    @always_inline
    def add_products[
        M: Int, n: Int
    ](
        mut sums: Array[SIMD[DType.float32, Self.LANES], M * NR],
        x: Pointer[UInt8, _],
        unit: Pointer[UInt8, _],
        stride: Int,
    ):
        var weights = load_words[Self.W](unit.unsafe_bitcast[Scalar[Self.dtype]]())
        comptime for m in range(M):
            var values = load(x.unsafe_offset(m * stride).unsafe_bitcast[Float32](), 0)
            sums[m * NR + n] = Self.W.multiply_add(sums[m * NR + n], weights, values)
