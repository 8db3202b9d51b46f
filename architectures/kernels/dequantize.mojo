"""Blocks of quantized weights as float32, exactly as their formats define them."""

from .block_formats import CHUNK, BlockFormat, Floats, Unit, row_bytes, unit_bytes


def dequantize[F: BlockFormat](target: Pointer[mut=True, Float32, _], blocks: Pointer[UInt8, _], K: Int):
    """K weights of a row."""
    var whole = K // F.UNIT
    for u in range(whole):
        dequantize_unit[F](target.unsafe_offset(u * F.UNIT), blocks.unsafe_offset(u * unit_bytes[F]()))
    var rest = K % F.UNIT
    if rest != 0:
        var padded = PaddedUnit[F](blocks.unsafe_offset(whole * unit_bytes[F]()), rest)
        var weights = Array[Float32, F.UNIT](fill=0)
        dequantize_unit[F](Pointer(to=weights[0]), padded.start())
        for k in range(rest):
            target.unsafe_offset(whole * F.UNIT + k).unsafe_store(weights[k])


@always_inline
def dequantize_unit[F: BlockFormat](target: Pointer[mut=True, Float32, _], blocks: Pointer[UInt8, _]):
    var unit = F.unpack(blocks)
    comptime for place in range(F.UNIT // CHUNK):
        target.unsafe_offset(F.chunk(place) * CHUNK).unsafe_store(weights_at[F, place](unit))


@always_inline
def weights_at[F: BlockFormat, place: Int](unit: Unit) -> Floats:
    """The 16 weights at this place of the unit's vectors. Scale times value is exact, except in q6_k, which rounds once."""
    comptime chunk = F.chunk(place)
    var values = unit.values[place // 4].slice[CHUNK, offset=place % 4 * CHUNK]()
    var floats = (values - UInt8(F.OFFSET)).cast[DType.int8]().cast[DType.float32]()
    var scale = Floats(unit.scales[chunk * CHUNK // F.GROUP])
    comptime if F.HAS_MINIMA:
        return floats.fma(scale, Floats(-unit.minima[chunk // 2]))
    else:
        return floats * scale


struct PaddedUnit[F: BlockFormat](Movable):
    """The blocks at the end of a row that are no whole unit, and zeros."""

    var bytes: Array[UInt8, unit_bytes[Self.F]()]

    @always_inline
    def __init__(out self, blocks: Pointer[UInt8, _], count: Int):
        self.bytes = Array[UInt8, unit_bytes[Self.F]()](fill=0)
        for i in range(row_bytes[Self.F](count)):
            self.bytes[i] = blocks.unsafe_offset(i).unsafe_load()

    @always_inline
    def start(ref self) -> Pointer[UInt8, origin_of(self.bytes)]:
        return Pointer(to=self.bytes[0])
