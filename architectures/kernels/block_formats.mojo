"""The blocks of quantized weights, as GGUF files store them, unpacked into vectors of unsigned bytes.

A weight is `scale * (value - OFFSET) - minimum`, where GROUP weights share a scale and 32 share a minimum. A vector
holds weights in the order that unpacks fastest: chunks of 16 that are neighbours in a row, `chunk` says which.
"""

from .columns import Column, ScaleColumns

comptime Bytes = SIMD[DType.uint8, 64]
comptime Floats = SIMD[DType.float32, 16]
comptime CHUNK = 16
"""Weights that stay neighbours."""


struct Unit(Movable):
    """The weights that are unpacked at a time: up to 256 in vectors, their scales and their minima, as far as used."""

    var values: Array[Bytes, 4]
    var scales: Floats
    var minima: Floats

    @always_inline
    def __init__(out self):
        self.values = Array[Bytes, 4](fill=Bytes(0))
        self.scales = Floats(0)
        self.minima = Floats(0)


trait BlockFormat:
    """A block has BLOCK weights in BLOCK_BYTES, a unit UNIT weights: whole blocks, which fill whole vectors.

    LIMIT: the greatest value.
    """

    comptime BLOCK: Int
    comptime BLOCK_BYTES: Int
    comptime UNIT: Int
    comptime GROUP: Int
    comptime OFFSET: Int
    comptime LIMIT: Int
    comptime HAS_MINIMA: Bool

    @staticmethod
    def chunk(place: Int) -> Int:
        """Number, within the unit, of the chunk at this place of its vectors."""
        ...

    @staticmethod
    def unpack(blocks: Pointer[UInt8, _]) -> Unit:
        ...

    @staticmethod
    def scale_columns(block: Pointer[UInt8, _], stride: Int) -> ScaleColumns:
        """Those of a block of 16 rows, which are `stride` bytes apart."""
        ...

    @staticmethod
    def value_columns[group: Int](block: Pointer[UInt8, _], stride: Int) -> Array[Column, 8]:
        """The values of the block's group of 32, four of each row in a vector, in the order of the row."""
        ...


@always_inline
def unit_bytes[F: BlockFormat]() -> Int:
    return F.UNIT // F.BLOCK * F.BLOCK_BYTES


@always_inline
def row_bytes[F: BlockFormat](K: Int) -> Int:
    return K // F.BLOCK * F.BLOCK_BYTES
