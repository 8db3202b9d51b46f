"""Blocks of quantized weights as float32, exactly as their formats define them."""

from std.math import ceildiv

from .block_formats import CHUNK, BlockFormat, Floats, Unit, row_bytes, unit_bytes
from .rest_units import RestUnits


def dequantize[F: BlockFormat](target: Pointer[mut=True, Float32, _], blocks: Pointer[UInt8, _], K: Int):
    """K weights of a row."""
    var whole = K // F.UNIT
    var rest = rest_unit[F](blocks, K)
    var weights = Array[Float32, F.UNIT](uninitialized=True)
    for u in range(ceildiv(K, F.UNIT)):
        var source = blocks.unsafe_offset(u * unit_bytes[F]()) if u < whole else rest.start(0)
        dequantize_unit[F](target.unsafe_offset(u * F.UNIT) if u < whole else Pointer(to=weights[0]), source)
    for k in range(whole * F.UNIT, K):
        target.unsafe_offset(k).unsafe_store(weights[k - whole * F.UNIT])


@always_inline
def dequantize_unit[F: BlockFormat](target: Pointer[mut=True, Float32, _], blocks: Pointer[UInt8, _]):
    var unit = F.unpack(blocks)
    comptime for place in range(F.UNIT // CHUNK):
        target.unsafe_offset(F.chunk(place) * CHUNK).unsafe_store(weights_at[F, place](unit))


@always_inline
def weights_at[F: BlockFormat, place: Int](unit: Unit) -> Floats:
    """The 16 weights at this place of the unit's vectors; scale times value is exact, but in q6_k rounded once."""
    comptime chunk = F.chunk(place)
    var values = unit.values[place // 4].slice[CHUNK, offset=place % 4 * CHUNK]()
    var floats = (values - UInt8(F.OFFSET)).cast[DType.int8]().cast[DType.float32]()
    var scale = Floats(unit.scales[chunk * CHUNK // F.GROUP])
    comptime if F.HAS_MINIMA:
        return floats.fma(scale, Floats(-unit.minima[chunk // 2]))
    else:
        return floats * scale


@always_inline
def rest_unit[F: BlockFormat](w: Pointer[UInt8, _], K: Int) -> RestUnits[unit_bytes[F](), 1]:
    """The end of a row of K weights."""
    return RestUnits[unit_bytes[F](), 1](w, 0, K // F.UNIT * unit_bytes[F](), row_bytes[F](K))
